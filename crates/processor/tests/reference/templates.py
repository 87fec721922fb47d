"""templates.py FOLDER writes templates.json: what each published template renders for our messages, in the environment that
transformers 5.17 sets up (`utils/chat_template_utils.py`). Chats are in chats.json; equal renderings are stored once."""
import json, os, sys
from transformers.utils.chat_template_utils import _compile_jinja_template

chats = json.load(open("chats.json"))
out = {"texts": [], "models": {}}
index = {}
for model in sorted(os.listdir(sys.argv[1])):
    d = f"{sys.argv[1]}/{model}"
    if not os.path.isdir(d): continue
    if os.path.exists(f"{d}/chat_template.jinja"): source = open(f"{d}/chat_template.jinja").read()
    elif os.path.exists(f"{d}/chat_template.json"): source = json.load(open(f"{d}/chat_template.json"))["chat_template"]
    else: source = json.load(open(f"{d}/tokenizer_config.json"))["chat_template"]
    template = _compile_jinja_template(source)
    out["models"][model] = {}
    for name, chat in chats.items():
        try:
            text = template.render(messages=chat["messages"], tools=chat.get("tools"), documents=None, add_generation_prompt=chat.get("add_generation_prompt", True), **chat.get("kwargs", {}))
        except Exception as e:
            text = {"refused": str(e)}
        key = json.dumps(text)
        if key not in index:
            index[key] = len(out["texts"]); out["texts"].append(text)
        out["models"][model][name] = index[key]
json.dump(out, open("templates.json", "w"), ensure_ascii=False, indent=0)
