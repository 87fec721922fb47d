// The page of `foveal serve` in a headless Chromium, against the real server and its built-in model. See README.md.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const BINARY = process.env.FOVEAL_BINARY ?? `${ROOT}target/debug/foveal`;
const CHROMIUM = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
  .find(path => path && existsSync(path));
const PICTURE = readFileSync(`${ROOT}tests/fixtures/images/shapes.png`);
const KEY = "a-key-for-this-test";
/** Nothing here is about time: this only ends a test that would never end. */
const PATIENCE_MS = 300_000;
const CHAT = "**/v1/chat/completions";
const MARKUP = '<img src=x onerror="document.title=\'run\'"><script>document.title="run"</script>';

const playwright = await import("playwright-core").catch(() => null);
const lacks = !CHROMIUM ? "there is no Chromium" : !playwright ? "`npm install` has not been run here" : null;
if (lacks) {
  console.log(`skipped: ${lacks}`);
  process.exit(process.env.FOVEAL_REQUIRE_BROWSER === "1" ? 1 : 0);
}

/** Starts a server and waits until it is ready. */
async function serve(...options) {
  const child = spawn(BINARY, ["serve", "--port", "0", ...options], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  const address = await new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", code => reject(new Error(`${BINARY} ended with ${code}:\n${said}`)));
    child.stderr.setEncoding("utf8").on("data", text => {
      said += text;
      const ready = said.match(/on (http:\S+) is ready/);
      if (ready) resolve(ready[1]);
    });
  });
  return { address, stop: () => child.kill() };
}

let browser, open, locked;
before(async () => {
  [open, locked] = await Promise.all([serve(), serve("--api-key", KEY)]);
  const args = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync"];
  browser = await playwright.chromium.launch({ executablePath: CHROMIUM, headless: true, args });
});
after(async () => {
  await browser?.close();
  open?.stop();
  locked?.stop();
});

/**
 * A test with the page opened on its own. Whatever else it checks: nothing is asked of another host, no script fails,
 * nothing offends against the page's policy, and no request fails with a status that isn't among `statuses`.
 */
function pageTest(name, { server = () => open, statuses = [], prepare, ...options }, body) {
  test(name, { timeout: PATIENCE_MS }, async () => {
    const context = await browser.newContext(options);
    context.setDefaultTimeout(PATIENCE_MS);
    try {
      const page = await context.newPage();
      const { address } = server();
      const wrong = watch(page, address, statuses);
      await prepare?.(page);
      await page.goto(address);
      await body(page, address);
      assert.deepEqual(wrong, []);
    } finally {
      await context.close();
    }
  });
}

/** A list to which is added whatever a page does that it never should. */
function watch(page, address, statuses) {
  const wrong = [];
  page.on("pageerror", error => wrong.push(`script: ${error}`));
  page.on("console", message => {
    const isExpected = statuses.some(status => message.text().includes(`status of ${status}`));
    if (["error", "warning"].includes(message.type()) && !isExpected) wrong.push(`console: ${message.text()}`);
  });
  page.on("request", request => {
    const { protocol, origin } = new URL(request.url());
    if (!["blob:", "data:"].includes(protocol) && origin !== address) wrong.push(`asked: ${request.url()}`);
  });
  return wrong;
}

const text = (page, selector) => page.locator(selector).textContent();
const answer = page => page.locator(".answer").last();
const until = (page, condition, argument) => page.waitForFunction(condition, argument);
const isReady = page => until(page, () => !document.querySelector("#send").disabled);
const isAnswered = page => page.locator(".answer[aria-busy=false]").last().waitFor();

/** Drops files, as a person who drags them over the page does. */
async function drop(page, ...names) {
  const transfer = await page.evaluateHandle(([names, bytes]) => {
    const transfer = new DataTransfer();
    for (const name of names) transfer.items.add(new File([Uint8Array.from(bytes)], name, { type: "image/png" }));
    return transfer;
  }, [names, [...PICTURE]]);
  await page.dispatchEvent("body", "dragover", { dataTransfer: transfer });
  assert.equal(await page.locator("body.dragging").count(), 1);
  await page.dispatchEvent("body", "drop", { dataTransfer: transfer });
  assert.equal(await page.locator("body.dragging").count(), 0);
}

async function ask(page, question) {
  await isReady(page);
  await page.locator("#question").fill(question);
  await page.locator("#question").press("Enter");
}

/** The last answer's figures by name, as numbers and as they are read. */
function figures(page) {
  return page.locator("article").last().locator("data").evaluateAll(all =>
    Object.fromEntries(all.map(data => [data.className, { value: Number(data.value), words: data.textContent }])));
}

/** Watches what the page is sent for its questions. */
function exchanges(page) {
  const all = [];
  page.on("response", response => {
    if (response.url().endsWith("/v1/chat/completions")) all.push(response);
  });
  return all;
}

async function usageOf(response) {
  const lines = (await response.text()).split("\n").filter(line => line.startsWith("data: {"));
  return lines.map(line => JSON.parse(line.slice(6))).findLast(event => event.usage).usage;
}

/** Answers questions in the server's place. */
const instead = (page, answer) => page.route(CHAT, route => route.fulfill(answer));
const failed = (status, message, headers = {}) =>
  ({ status, headers, contentType: "application/json", body: JSON.stringify({ error: { message, param: null } }) });
const streamed = (...events) => ({
  contentType: "text/event-stream",
  body: events.map(event => `data: ${typeof event === "string" ? event : JSON.stringify(event)}\n\n`).join(""),
});
const piece = (content, finish_reason = null) => ({ choices: [{ index: 0, delta: { content }, finish_reason }] });

/** Has the server's answers go on for longer than any test lasts. */
const lengthen = page => page.route(CHAT, route => {
  const body = route.request().postDataJSON();
  return route.continue({ postData: JSON.stringify({ ...body, ignore_eos: true, max_tokens: 8000 }) });
});

pageTest("a dropped picture is described, and the figures are the API's", {}, async page => {
  const sent = exchanges(page);
  await drop(page, "shapes.png");
  await until(page, () => document.querySelector("#pictures img").naturalWidth > 0);
  await ask(page, "Describe the picture.");
  await isAnswered(page);
  assert.match(await answer(page).textContent(), /^There are four shapes:/);
  assert.equal(await page.locator(".question img").count(), 1);
  assert.equal(await page.locator("#pictures img").count(), 0);
  assert.equal(await text(page, "#model"), "built-in");

  const shown = await figures(page);
  const usage = await usageOf(sent[0]);
  assert.ok(usage.prompt_tokens_details.image_tokens > 0);
  assert.equal(shown["image-tokens"].words, `${usage.prompt_tokens_details.image_tokens} tokens`);
  assert.equal(shown["prompt-tokens"].words, `${usage.prompt_tokens} tokens`);
  assert.equal(shown["answer-tokens"].words, `${usage.completion_tokens} tokens`);
  assert.equal(shown["cached-tokens"].words, `${usage.prompt_tokens_details.cached_tokens} tokens`);
  assert.match(shown["first-token"].words, /^[\d.]+ m?s$/);
  assert.match(shown.speed.words, /^(> )?[\d.]+ tokens\/s$/);
});

/**
 * Puts a server in place of the real one, and a clock beside it: the answer's tokens arrive at times of the test's making,
 * those of one number of milliseconds together, in two parts that match no event, and each once the one before is shown.
 */
const paced = (page, arrivals) => page.addInitScript(arrivals => {
  let now = 0;
  performance.now = () => now;
  const real = window.fetch;
  const encoder = new TextEncoder();
  const event = completion_tokens =>
    ({ choices: [{ index: 0, delta: { content: "x" } }], usage: { prompt_tokens: 9, completion_tokens } });
  const start = async to => {
    for (const [ms, ...counts] of arrivals) {
      now += ms;
      const text = counts.map(count => `data: ${JSON.stringify(event(count))}\r\n\r\n`).join("");
      to.enqueue(encoder.encode(text.slice(0, 30)));
      to.enqueue(encoder.encode(text.slice(30)));
      const isShown = () => Number(document.querySelector(".answer-tokens")?.value) === counts.at(-1);
      while (!isShown()) await new Promise(requestAnimationFrame);
    }
    to.enqueue(encoder.encode("data: [DONE]\r\n\r\n"));
    to.close();
  };
  window.fetch = async (path, options) =>
    String(path).endsWith("chat/completions") ? new Response(new ReadableStream({ start })) : real(path, options);
}, arrivals);

const SPREAD = [[300, 1, 2], [150, 3], [150, 4], [150, 5], [150, 8]];
const AT_ONCE = [[1250, 1, 2, 3, 4, 5]];
for (const [name, arrivals, expected] of [
  ["the speed is that of the tokens after the first ones", SPREAD, ["300 ms", "10.0 tokens/s"]],
  ["a speed that can't be told is given its lower bound", AT_ONCE, ["1.25 s", "> 4.0 tokens/s"]],
]) {
  pageTest(name, { prepare: page => paced(page, arrivals) }, async page => {
    await ask(page, "How quick are you?");
    await isAnswered(page);
    const { "first-token": first, speed } = await figures(page);
    assert.deepEqual([first.words, speed.words], expected);
  });
}

pageTest("the answer is shown while it is written, and Stop ends it here and in the server", {
  prepare: lengthen,
}, async (page, address) => {
  const broken = page.waitForEvent("requestfailed");
  await ask(page, "Tell me all that you know.");
  await until(page, () => document.querySelector(".answer")?.textContent.length > 20);
  assert.equal(await answer(page).getAttribute("aria-busy"), "true");
  await page.locator("data.speed").waitFor();
  assert.match((await figures(page)).speed.words, /^[\d.]+ tokens\/s$/);
  await page.getByRole("button", { name: "Stop" }).click();
  await isAnswered(page);
  const written = await answer(page).textContent();
  assert.match(await text(page, ".ending"), /stopped/);
  assert.match((await broken).url(), /chat\/completions$/);
  for (let running = null; running !== "0"; await page.waitForTimeout(20)) {
    const metrics = await (await fetch(`${address}/metrics`)).text();
    [, running] = metrics.match(/^vllm:num_requests_running\{.*\} (\d+)$/m);
  }
  assert.equal(await answer(page).textContent(), written);

  // What was answered stays in the chat.
  await page.unroute(CHAT);
  const request = page.waitForRequest(CHAT);
  await ask(page, "And now?");
  const { messages } = (await request).postDataJSON();
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user"]);
  assert.equal(messages[1].content, written);
});

pageTest("a further question is about the same picture, and a new chat begins without it", {}, async page => {
  const sent = exchanges(page);
  await drop(page, "shapes.png");
  await ask(page, "Describe the picture.");
  await isAnswered(page);
  await ask(page, "How many circles are there?");
  await until(page, () => document.querySelectorAll(".answer[aria-busy=false]").length === 2);
  const { messages } = sent[1].request().postDataJSON();
  assert.deepEqual(messages.map(({ role }) => role), ["user", "assistant", "user"]);
  assert.equal(messages[0].content[0].image_url.url, `data:image/png;base64,${PICTURE.toString("base64")}`);
  assert.equal(messages[1].content, await page.locator(".answer").first().textContent());
  assert.ok((await figures(page))["image-tokens"].value > 0);

  await page.getByRole("button", { name: "New chat" }).click();
  assert.equal(await page.locator("article").count(), 0);
  assert.ok(await page.locator("#welcome").isVisible());
  await ask(page, "Is there a picture?");
  await isAnswered(page);
  assert.deepEqual(sent[2].request().postDataJSON().messages, [{ role: "user", content: "Is there a picture?" }]);
});

pageTest("a new chat while an answer is written forgets it", {
  prepare: lengthen,
}, async page => {
  await ask(page, "Tell me all that you know.");
  await until(page, () => document.querySelector(".answer")?.textContent.length > 20);
  await page.getByRole("button", { name: "New chat" }).click();
  await page.unroute(CHAT);
  const request = page.waitForRequest(CHAT);
  await ask(page, "Hello.");
  assert.equal((await request).postDataJSON().messages.length, 1);
  await isAnswered(page);
  assert.equal(await page.locator("article").count(), 1);
  assert.equal(await text(page, "#notice"), "");
});

pageTest("pictures are dropped, chosen and pasted, and can be removed", {}, async page => {
  await drop(page, "one.png", "two.png");
  await page.locator("#files").setInputFiles({ name: "three.png", mimeType: "image/png", buffer: PICTURE });
  await page.evaluate(bytes => {
    const clipboardData = new DataTransfer();
    clipboardData.items.add(new File([Uint8Array.from(bytes)], "four.png", { type: "image/png" }));
    const event = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
    document.querySelector("#question").dispatchEvent(event);
  }, [...PICTURE]);
  const names = () => page.locator("#pictures img").evaluateAll(images => images.map(image => image.alt));
  assert.deepEqual(await names(), ["one.png", "two.png", "three.png", "four.png"]);
  await page.getByRole("button", { name: "Remove one.png" }).click();
  await page.getByRole("button", { name: "Remove three.png" }).press("Enter");
  assert.deepEqual(await names(), ["two.png", "four.png"]);
  const sent = exchanges(page);
  await ask(page, "Are the pictures the same?");
  await isAnswered(page);
  const [{ content }] = sent[0].request().postDataJSON().messages;
  assert.deepEqual(content.map(({ type }) => type), ["image_url", "image_url", "text"]);
});

pageTest("Enter sends, Shift+Enter begins a line, and settings are sent only where they are set", {}, async page => {
  const sent = exchanges(page);
  await isReady(page);
  await page.locator("#question").pressSequentially("one");
  await page.locator("#question").press("Shift+Enter");
  await page.locator("#question").pressSequentially("two");
  await page.locator("#question").press("Enter");
  await isAnswered(page);
  const first = sent[0].request().postDataJSON();
  assert.deepEqual(Object.keys(first).sort(), ["messages", "model", "stream", "stream_options"]);
  assert.equal(first.messages[0].content, "one\ntwo");

  await page.getByLabel("Temperature").fill("0.25");
  await page.getByLabel("Max tokens").fill("3");
  await ask(page, "three");
  await until(page, () => document.querySelectorAll(".answer[aria-busy=false]").length === 2);
  const second = sent[1].request().postDataJSON();
  assert.deepEqual([second.temperature, second.max_tokens], [0.25, 3]);
  const usage = await usageOf(sent[1]);
  if (usage.completion_tokens === 3) assert.match(await page.locator(".ending").last().textContent(), /cut off/);
});

pageTest("a picture that can't be read is refused in the server's words, and nothing is lost", {
  statuses: [400],
}, async page => {
  await drop(page, "shapes.png");
  const file = { name: "photo.heic", mimeType: "image/heic", buffer: Buffer.from("not a picture") };
  await page.locator("#files").setInputFiles(file);
  const refused = page.waitForResponse(CHAT);
  await ask(page, "Describe the picture.");
  const { error } = await (await refused).json();
  await until(page, message => document.querySelector("#notice").textContent === message, error.message);
  assert.equal(await page.locator("#question").inputValue(), "Describe the picture.");
  await page.locator("#pictures span.wrong", { hasText: "photo.heic" }).waitFor();
  assert.equal(await page.locator("#pictures img:not(.wrong)").getAttribute("alt"), "shapes.png");
  await page.getByRole("button", { name: "Remove photo.heic" }).click();
  await page.locator("#question").press("Enter");
  await isAnswered(page);
  assert.match(await answer(page).textContent(), /^There are four shapes:/);
  assert.equal(await text(page, "#notice"), "");
});

pageTest("when there is no room, it says when to send again", {
  statuses: [429],
  prepare: page => instead(page, failed(429, "3 requests are being answered already", { "retry-after": "7" })),
}, async page => {
  await ask(page, "Hello?");
  await until(page, () => document.querySelector("#notice").textContent.includes("already. Send it again in 7 s."));
  assert.equal(await page.locator("#question").inputValue(), "Hello?");
  await page.unroute(CHAT);
  await page.locator("#question").press("Enter");
  await isAnswered(page);
});

pageTest("an error within the stream stands under what was written before it", {
  prepare: page => instead(page, streamed(piece("There are"), { error: { message: "the engine has stopped" } }, "[DONE]")),
}, async page => {
  await ask(page, "Describe the picture.");
  await isAnswered(page);
  assert.equal(await answer(page).textContent(), "There are");
  assert.equal(await text(page, ".ending"), "the engine has stopped");
});

pageTest("a stream that breaks off is no whole answer", {
  prepare: page => instead(page, streamed(piece("There are"))),
}, async page => {
  await ask(page, "Describe the picture.");
  await isAnswered(page);
  assert.match(await text(page, ".ending"), /connection ended/);
});

pageTest("markup stays text in questions, answers, errors and file names", {
  statuses: [400],
  prepare: page => instead(page, streamed(piece(MARKUP), piece("", "stop"), "[DONE]")),
}, async page => {
  await drop(page, `${MARKUP}.png`);
  await ask(page, MARKUP);
  await isAnswered(page);
  assert.equal(await answer(page).textContent(), MARKUP);
  assert.equal(await text(page, ".question p"), MARKUP);
  await page.unroute(CHAT);
  await instead(page, failed(400, MARKUP));
  await ask(page, "Again.");
  await until(page, markup => document.querySelector("#notice").textContent === markup, MARKUP);
  assert.equal(await page.locator("img").count(), 1, "the dropped picture alone");
  assert.equal(await page.locator("script").count(), 1, "the page's own");
  assert.equal(await page.title(), "built-in · Foveal");
});

pageTest("while the model is being loaded, the page waits", {
  statuses: [503],
  prepare: async page => {
    let left = 2;
    const loading = failed(503, "the model is being loaded");
    await page.route("**/health", route => left-- > 0 ? route.fulfill(loading) : route.continue());
  },
}, async page => {
  await until(page, () => document.querySelector("#status").textContent.startsWith("the model is being loaded"));
  assert.ok(await page.locator("#send").isDisabled());
  await ask(page, "Hello.");
  await isAnswered(page);
  assert.equal(await text(page, "#status"), "");
});

pageTest("an API key is asked for, a wrong one refused, and the right one kept for the tab", {
  server: () => locked, statuses: [401],
}, async page => {
  const form = page.locator("#key-form");
  await form.waitFor();
  assert.equal(await text(page, "#notice"), "");
  await page.getByLabel("API key").fill("wrong");
  await page.getByLabel("API key").press("Enter");
  await until(page, () => document.querySelector("#notice").textContent.includes("isn't one of this server's"));
  await page.getByLabel("API key").fill(KEY);
  await page.getByLabel("API key").press("Enter");
  await ask(page, "Hello.");
  await isAnswered(page);
  assert.ok(await form.isHidden());
  await page.reload();
  await isReady(page);
  assert.ok(await form.isHidden());
  assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0);

  // The key is changed while the page is open.
  await page.evaluate(() => key.set("outdated"));
  await ask(page, "Still there?");
  await form.waitFor();
  assert.equal(await page.locator("#question").inputValue(), "Still there?");
});

pageTest("a server without keys is asked without one", {}, async page => {
  const request = page.waitForRequest(CHAT);
  await ask(page, "Hello.");
  assert.equal((await request).headers().authorization, undefined);
  assert.ok(await page.locator("#key-form").isHidden());
  await isAnswered(page);
});

for (const colorScheme of ["light", "dark"]) {
  pageTest(`all text can be read in ${colorScheme}, and nothing is wider than a phone`, {
    colorScheme, viewport: { width: 320, height: 640 }, reducedMotion: "reduce",
  }, async page => {
    const word = "a_word_without_any_space_in_it_that_does_not_fit_onto_the_screen_of_a_phone";
    await instead(page, streamed(piece(word, "length"), "[DONE]"));
    await drop(page, "one.png");
    await ask(page, word);
    await isAnswered(page);
    await drop(page, "two.png", "three.png", "four.png", "five.png");
    await page.evaluate(word => {
      for (const place of ["#model", "#notice", "#status"]) document.querySelector(place).textContent = word;
      document.querySelector("#key-form").hidden = false;
    }, word);
    assert.ok(await page.evaluate(() => document.scrollingElement.scrollWidth <= innerWidth));

    // WCAG's contrast of every text with what lies behind it; 4.5 is AA.
    const poor = await page.evaluate(() => {
      const rgb = color => color.match(/[\d.]+/g).map(Number);
      const light = color => rgb(color).slice(0, 3).map(c => c / 255)
        .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const behind = element => {
        const color = element ? getComputedStyle(element).backgroundColor : "rgb(255, 255, 255)";
        return rgb(color)[3] === 0 ? behind(element.parentElement) : color;
      };
      const seen = [...document.querySelectorAll("body *")].filter(element => element.checkVisibility() && !element.disabled
        && [...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim()));
      return seen.flatMap(element => {
        const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
        const contrast = (a + 0.05) / (b + 0.05);
        return contrast < 4.5 ? [`${element.tagName} ${element.textContent.slice(0, 30)}: ${contrast.toFixed(2)}`] : [];
      });
    });
    assert.deepEqual(poor, []);
  });
}
