"""Runs checks one after another and prints a line for each; the exit status says whether all passed."""
import sys
import time
import traceback

CHECKS = []


def check(name):
    """Registers a function of the server as the check `name`."""
    def register(function):
        CHECKS.append((name, function))
        return function
    return register


def report(name, work):
    """Runs one check. True if it passed."""
    start = time.monotonic()
    try:
        said = work()
    except Exception as error:  # a check that fails says why, and the next one runs
        kind = "" if type(error) is AssertionError else f"{type(error).__name__}: "
        print(f"FAIL  {name}: {kind}{error}", flush=True)
        traceback.print_exc()
        return False
    seconds = time.monotonic() - start
    print(f"ok    {name}{f': {said}' if said else ''} ({seconds:.1f} s)", flush=True)
    return True


def run_checks(area, server):
    """Runs all registered checks against `server`, then looks at what it leaves behind, and ends the program."""
    passed = [report(f"{area}: {name}", lambda function=function: function(server)) for name, function in CHECKS]
    passed.append(report(f"{area}: the server is idle again and its log clean", server.check_left_clean))
    sys.exit(0 if all(passed) else 1)


def equal(got, expected, what=""):
    """Asserts that two things are equal, and shows both if not."""
    assert got == expected, f"{what + ': ' if what else ''}got {got!r}, expected {expected!r}"


def raises(kind, work, **attributes):
    """Asserts that `work` raises `kind` with these attributes, and gives the exception."""
    try:
        work()
    except kind as error:
        for name, expected in attributes.items():
            equal(getattr(error, name), expected, f"{kind.__name__}.{name} of {error}")
        return error
    raise AssertionError(f"{kind.__name__} expected, but nothing was raised")
