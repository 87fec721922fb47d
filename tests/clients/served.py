"""A server under test: `foveal serve` with its built-in model on the CPU, started here and looked into from outside.

The binary is FOVEAL_BINARY, else target/debug/foveal. It is told to stop when the program ends.
"""
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("FOVEAL_BINARY", str(ROOT / "target/debug/foveal"))
SHAPES = ROOT / "tests/fixtures/images/shapes.png"

MODEL = "built-in"
# What the model answers: it was trained to count and to describe this picture.
COUNT = "Count from 3 to 12."
COUNTED = "3, 4, 5, 6, 7, 8, 9, 10, 11, 12."
DESCRIBE = "Describe the picture."
DESCRIBED = "There are four shapes:"

# Gauges that are 0 when nobody asks anything.
IDLE = [
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "foveal_requests",
    "foveal_preparing_requests", "foveal_running_sequences", "foveal_waiting_sequences", "foveal_kv_pages_used",
]
# Seconds that a loaded machine may take for what an idle one does in well under one.
PATIENCE_S = 60


def name_and_seconds(stat):
    """A process's or a thread's name and the processor's time that it has used, by its `stat`."""
    name, fields = re.fullmatch(r"\d+ \((.*)\) (.*)", stat.read_text(), re.DOTALL).groups()
    user, system = fields.split()[11:13]
    return name, (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Served:
    """A running server."""

    def __init__(self, *options, env=None):
        self.log = tempfile.NamedTemporaryFile(prefix="foveal-serve-", suffix=".log")
        command = [BINARY, "serve", "--device", "cpu", "--port", "0", *options]
        streams = {"stdin": subprocess.DEVNULL, "stdout": self.log, "stderr": self.log}
        self.process = subprocess.Popen(command, env={**os.environ, **(env or {})}, **streams)
        ready = self.wait_for(lambda: re.search(r" on (http://(\S+):(\d+)) is ready", self.said()), "the ready line")
        self.url, self.host, self.port = ready[1], ready[2], int(ready[3])
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def said(self):
        """All that it has written."""
        return Path(self.log.name).read_text(errors="replace")

    def wait_for(self, condition, what, timeout_s=PATIENCE_S):
        """Waits until `condition` gives something true, and gives that."""
        end = time.monotonic() + timeout_s
        while not (found := condition()):
            status = self.process.poll()
            assert status is None, f"the server ended with status {status} before {what}:\n{self.said()[-4000:]}"
            assert time.monotonic() < end, f"{what} didn't come within {timeout_s} s:\n{self.said()[-4000:]}"
            time.sleep(0.05)
        return found

    def metrics(self):
        """Its counts and gauges, those of one name added up."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=PATIENCE_S) as response:
            lines = response.read().decode().splitlines()
        values = {}
        for line in lines:
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                name = name.split("{")[0]
                values[name] = values.get(name, 0) + float(value)
        return values

    def busy(self):
        """The gauges that aren't 0."""
        values = self.metrics()
        return {name: values[name] for name in IDLE if values[name] != 0}

    def wait_idle(self, timeout_s=PATIENCE_S):
        """Waits until nothing runs, waits or holds a page."""
        end = time.monotonic() + timeout_s
        while busy := self.busy():
            assert time.monotonic() < end, f"after {timeout_s} s without requests: {busy}"
            time.sleep(0.05)

    def check_left_clean(self):
        """Nothing runs any more, and the log tells of no panic and no error."""
        self.wait_idle()
        bad = [line for line in self.said().splitlines() if re.search(r"panicked|\bERROR\b|\bpanic\b", line)]
        assert not bad, "\n".join(bad[:10])

    def resident_bytes(self):
        """Its memory that is in use."""
        return self._status("VmRSS") * 1024

    def num_threads(self):
        """Its threads."""
        return self._status("Threads")

    def num_files(self):
        """Its open files and sockets."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def cpu_seconds(self):
        """The processor's time that it has used."""
        return name_and_seconds(Path(f"/proc/{self.pid}/stat"))[1]

    def _status(self, name):
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])

    def stop(self, number=signal.SIGTERM):
        """Sends it a signal, twice if it takes long, and gives its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
