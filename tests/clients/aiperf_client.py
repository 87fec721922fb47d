"""`aiperf profile`, as it comes, against a served model: chats with and without pictures, and texts.

aiperf_client.py    needs aiperf in the Python that runs this
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import check, equal, run_checks
from served import MODEL, ROOT, Served

AIPERF = Path(sys.executable).with_name("aiperf")
NUM_REQUESTS, INPUT_LEN, OUTPUT_LEN = 8, 32, 16


def profile(server, endpoint, *options):
    """Runs it, checks that nothing failed, and gives its results."""
    with tempfile.TemporaryDirectory(prefix="foveal-aiperf-") as folder:
        command = [
            AIPERF, "profile", "--model", MODEL, "--url", server.url, "--endpoint-type", endpoint, "--streaming",
            # The built-in model's own: nothing is downloaded.
            "--tokenizer", ROOT / "tests/fixtures/tiny", "--isl", INPUT_LEN, "--osl", OUTPUT_LEN,
            "--extra-inputs", "ignore_eos:true", "--request-count", NUM_REQUESTS, "--concurrency", 4,
            "--workers-max", 1, "--record-processors", 1, "--ui", "none", "--no-gpu-telemetry",
            "--artifact-dir", folder, *options,
        ]
        done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, f"status {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        results = json.loads(Path(folder, "profile_export_aiperf.json").read_text())
        scraped = json.loads(Path(folder, "server_metrics_export.json").read_text())["summary"]
    equal((results["error_summary"], results["was_cancelled"], results["is_complete"]), ([], False, True))
    equal((results["completed_request_count"]["avg"], results["request_error_rate"]["avg"]), (NUM_REQUESTS, 0))
    equal(results["request_count"]["avg"], NUM_REQUESTS, "requests that succeeded")
    # By the server's count, and by the events that came.
    equal(results["usage_completion_tokens"]["avg"], OUTPUT_LEN)
    assert results["time_to_first_token"]["avg"] > 0 and results["inter_token_latency"]["avg"] > 0
    equal(scraped["endpoints_successful"], scraped["endpoints_configured"], "metrics that it reads along the way")
    return results


def prompt_tokens(results):
    return results["usage_prompt_tokens"]["avg"]


@check("--endpoint-type chat")
def chats(server):
    assert prompt_tokens(profile(server, "chat")) > INPUT_LEN, "the template adds to the prompt"


@check("--endpoint-type chat with two pictures in each request")
def chats_with_pictures(server):
    sizes = ["--image-width-mean", 96, "--image-height-mean", 64, "--image-batch-size", 2]
    for form in ("png", "jpeg"):
        # Two pictures of 3 x 2 squares.
        assert prompt_tokens(profile(server, "chat", *sizes, "--image-format", form)) > INPUT_LEN + 12


@check("--endpoint-type completions")
def completions(server):
    profile(server, "completions")


if __name__ == "__main__":
    with Served() as served:
        run_checks("aiperf", served)
