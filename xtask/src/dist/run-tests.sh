#!/bin/sh
# Runs the test programs beside this file on this machine's GPU, then the program itself: a line for each, and exit
# status 0 if all pass. Words go to the test programs: `run-tests.sh add_norm` runs the tests with this in their names.
# FOVEAL_TEST_LOGS names a folder for what they print.
cd "$(dirname "$0")" || exit 1
# A GPU that can't be used fails the tests; otherwise they would say `skipped` and pass.
export FOVEAL_REQUIRE_GPU=1 FOVEAL_FIXTURES="$PWD/fixtures"
logs=${FOVEAL_TEST_LOGS:-$(mktemp -d)}
mkdir -p "$logs" || exit 1
failures=0

# NAME COMMAND...: one line, and below it the tests that failed, or the end of what it printed.
check() {
    name=$1
    shift
    log="$logs/$name.log"
    start=$(date +%s)
    "$@" >"$log" 2>&1 </dev/null
    status=$?
    tests=$(sed -n 's/^test result: [A-Za-z]*\. \([0-9]* passed; [0-9]* failed\).*/, \1/p' "$log" | tail -n 1)
    skipped=$(grep -c '^skipped' "$log")
    [ "$skipped" = 0 ] || tests="$tests, $skipped skipped"
    seconds=$(($(date +%s) - start))
    if [ "$status" = 0 ]; then
        echo "$name: ok$tests, $seconds s"
    else
        echo "$name: FAILED with status $status$tests, $seconds s"
        { grep '^test .* FAILED$' "$log" || tail -n 15 "$log"; } | head -n 30 | sed 's/^/    /'
        failures=$((failures + 1))
    fi
}

describes_shapes() {
    answer=$(./foveal run --device cuda --model fixtures/tiny --image fixtures/images/shapes.png "Describe the picture.")
    echo "$answer"
    case $answer in "There are four shapes:"*) ;; *) return 1 ;; esac
}

for program in tests/*; do
    # The folder of compiled kernels lies there too.
    [ ! -f "$program" ] || check "$(basename "$program")" "$program" --show-output "$@"
done
if [ $# = 0 ]; then
    check doctor ./foveal doctor
    check run describes_shapes
    check verify ./foveal verify --device cuda --model fixtures/tiny --reference fixtures/reference/tiny.safetensors
fi
echo "$failures failed; what they printed is in $logs"
[ "$failures" = 0 ]
