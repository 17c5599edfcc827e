"""The harness: candidates asked in turn, their spread, the dead and the absent, the results."""

import contextlib
import json
import os
import pathlib
import sys
import textwrap
import time
import types

import jax
import pytest

from eqxformer.bench import harness


@pytest.fixture(autouse=True)
def _candidates_start_quickly(monkeypatch):
    monkeypatch.setenv("EQXFORMER_CHECKS", "0")  # which would import JAX
    monkeypatch.setattr(harness, "PAUSE", 0.0)


def candidate(body: str) -> list[str]:
    """The command line of a candidate that prints what it is told to: no library is imported."""
    return ["-c", "import json, sys\n" + textwrap.dedent(body)]


def timed(*seconds: float) -> list[str]:
    """A candidate that says its repetitions take these seconds."""
    return candidate(f"""
        print("ready", json.dumps({{"name": "fake"}}), flush=True)
        for seconds, _ in zip({list(seconds)}, sys.stdin):
            print(seconds, flush=True)
        """)


def logging(name: str, path: pathlib.Path) -> list[str]:
    """A candidate that serves, and writes its name at every repetition."""
    return candidate(f"""
        from eqxformer.bench import harness
        def repeat():
            with open({str(path)!r}, "a") as file:
                file.write({name!r})
        harness.serve(repeat, letter={name!r})
        """)


def test_candidates_warm_up_one_by_one_and_are_asked_once_a_round_in_changing_order(tmp_path):
    log = tmp_path / "log"
    commands = {name: logging(name, log) for name in "abc"}
    found = harness.compare(commands, repetitions=4)
    calls = log.read_text()
    assert calls[:6] == "aabbcc"
    rounds = [calls[i : i + 6] for i in range(6, len(calls), 6)]
    # Quick ones are called twice, of which one is timed.
    assert [sorted(each[::2]) for each in rounds] == [["a", "b", "c"]] * 4
    assert all(each[::2] == each[1::2] for each in rounds)
    assert len(set(rounds)) > 1
    assert [facts["letter"] for facts in found.values()] == ["a", "b", "c"]
    assert all(facts["first_seconds"] > 0 and facts["repetitions"] == 4 for facts in found.values())


@pytest.mark.parametrize("told", [True, False], ids=["by its asker", "by its own JAX"])
@pytest.mark.parametrize(("platform", "awake"), [("cpu", 0.0), ("gpu", harness.AWAKE)])
def test_a_gpu_repeats_untimed_until_its_clock_has_risen_and_a_cpu_once(
    monkeypatch, capsys, platform, awake, told
):
    begun = []  # of every repetition asked for, when it was and when each of its calls began

    def asks():
        for _ in range(2):
            begun.append([time.perf_counter()])
            yield "go"

    def repeat():
        if begun:
            begun[-1].append(time.perf_counter())
        time.sleep(0.01)

    if told:
        monkeypatch.setenv(harness.PLATFORM, platform)
    else:
        monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(sys, "stdin", asks())
    harness.serve(repeat)
    assert [len(calls) for calls in begun] == [3, 3] or awake
    assert all(calls[-1] - calls[0] >= awake for calls in begun)  # the last is timed
    assert all(float(line) >= 0.01 for line in capsys.readouterr().out.splitlines()[1:])


def test_medians_and_quartiles_are_those_of_the_repetitions():
    found = harness.compare({"fake": timed(5.0, 1.0, 3.0)}, repetitions=3)["fake"]
    assert found == {"name": "fake", "median": 3.0, "quartiles": [2.0, 4.0], "repetitions": 3}


@pytest.mark.parametrize("seconds", [(0.5,), (0.1, 1.0)])
def test_quartiles_lie_between_what_was_measured(seconds):
    found = harness.compare({"fake": timed(*seconds)}, repetitions=len(seconds))["fake"]
    low, high = found["quartiles"]
    assert min(seconds) <= low <= found["median"] <= high <= max(seconds)


def test_times_are_those_of_a_call_where_a_repetition_makes_several():
    several = candidate("""
        print("ready", json.dumps({"calls": 4}), flush=True)
        for seconds, _ in zip((8.0, 2.0, 4.0), sys.stdin):
            print(seconds, flush=True)
        """)
    found = harness.compare({"one": timed(3.0, 3.0, 3.0), "several": several}, repetitions=3)
    assert (found["one"]["median"], found["several"]["median"]) == (3.0, 1.0)
    assert found["several"]["quartiles"] == [0.75, 1.5]


@pytest.mark.parametrize(("least", "calls"), [(0.0, 1), (1.0, 1), (1.1, 2), (3.5, 4)])
def test_a_repetition_makes_as_many_calls_as_take_long_enough(monkeypatch, least, calls):
    now, done = [0.0], []

    def call():
        now[0] += 1.0
        done.append("call")
        return len(done)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    repeat, number = harness.repeated(call, least=least, wait=lambda out: done.append(out))
    del done[:]
    repeat()
    assert number == calls
    assert done == [*["call"] * calls, calls]  # what the last one gives is waited for


def test_nothing_is_compared_where_nobody_is_there():
    absent = candidate("from eqxformer.bench import harness; harness.needs('no_such_package')")
    with pytest.raises(harness.CandidateFailed, match="None of a, b can be measured here"):
        harness.compare({"a": absent, "b": absent}, repetitions=1)


def test_what_disagrees_is_refused_before_a_repetition(tmp_path):
    log = tmp_path / "log"

    def check(facts):
        raise SystemExit(f"{facts['a']['letter']} is not {facts['b']['letter']}")

    with pytest.raises(SystemExit, match="a is not b"):
        harness.compare({n: logging(n, log) for n in "ab"}, repetitions=3, check=check)
    assert log.read_text() == "aabb"  # they have warmed up


@pytest.mark.parametrize(
    ("platform", "sees", "printed"),
    [
        ("cpu", True, "cpu\n"),
        ("gpu", True, "cuda\n"),
        ("gpu", False, 'absent "PyTorch sees no GPU"\n'),
    ],
)
def test_pytorch_computes_where_jax_does_or_not_at_all(
    monkeypatch, capsys, platform, sees, printed
):
    fake = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: sees))
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setenv(harness.PLATFORM, platform)
    with contextlib.suppress(SystemExit):
        print(harness.torch_device())
    assert capsys.readouterr().out == printed


def test_candidates_are_told_where_the_asker_computes():
    told = candidate("""
        import os
        print("ready", json.dumps({"where": os.environ["EQXFORMER_BENCH_PLATFORM"]}), flush=True)
        for _ in sys.stdin:
            print(1.0, flush=True)
        """)
    found = harness.compare({"fake": told}, repetitions=1)
    assert found["fake"]["where"] == jax.default_backend()


def test_one_repetition_is_its_own_median_and_quartiles():
    found = harness.compare({"fake": timed(2.5)}, repetitions=1)["fake"]
    assert (found["median"], found["quartiles"]) == (2.5, [2.5, 2.5])


def test_other_lines_before_a_candidate_is_ready_are_passed_over():
    noisy = timed(1.0)
    noisy[1] = "print('warming up')\n" + noisy[1]
    assert harness.compare({"noisy": noisy}, repetitions=1)["noisy"]["median"] == 1.0


def test_a_candidate_that_is_not_installed_is_named_and_left_out(capsys):
    absent = candidate("""
        from eqxformer.bench import harness
        harness.needs("json", "no_such_library")
        """)
    found = harness.compare({"absent": absent, "fake": timed(1.0, 1.0)}, repetitions=2)
    assert list(found) == ["fake"]
    assert capsys.readouterr().out == "absent is left out: no_such_library not installed.\n"


def test_a_candidate_that_dies_before_it_is_ready_is_an_error_with_its_name():
    with pytest.raises(harness.CandidateFailed, match="`dead` ended with exit code 3"):
        harness.compare({"fake": timed(1.0), "dead": candidate("sys.exit(3)")}, repetitions=1)


@pytest.mark.parametrize("done", [None, 0, 1])
def test_one_that_may_fail_is_named_with_the_reason_and_the_others_have_their_results(done, capsys):
    dying = candidate("sys.exit(3)") if done is None else timed(*[1.0] * done)
    commands = {"dying": dying, "whole": timed(3.0, 3.0)}
    found = harness.compare(commands, repetitions=2, may_fail={"dying"})
    assert list(found) == ["whole"]
    assert found["whole"]["median"] == 3.0
    assert "dying is left out: `dying` ended with exit code" in capsys.readouterr().out


@pytest.mark.parametrize("dying", [candidate("sys.exit(3)"), timed()])
def test_where_all_that_may_fail_do_there_is_no_result_but_an_error(dying):
    with pytest.raises(harness.CandidateFailed, match="None of a, b can be measured here"):
        harness.compare({"a": dying, "b": dying}, repetitions=2, may_fail={"a", "b"})


def test_facts_are_checked_before_anything_is_timed(tmp_path):
    log = tmp_path / "log"

    def refuse(facts):
        raise ValueError(f"{facts['a']['letter']} is wrong")

    with pytest.raises(ValueError, match="a is wrong"):
        harness.compare({"a": logging("a", log)}, repetitions=3, check=refuse)
    assert log.read_text() == "aa"  # the calls that warm up


@pytest.mark.parametrize("done", [0, 1])
def test_a_candidate_that_dies_later_is_an_error_and_the_others_are_let_go(done, tmp_path):
    gone = tmp_path / "gone"
    other = candidate(f"""
        print("ready", "{{}}", flush=True)
        for _ in sys.stdin:
            print(1.0, flush=True)
        open({str(gone)!r}, "w").close()
        """)
    with pytest.raises(harness.CandidateFailed, match="`dying` ended with exit code 0"):
        harness.compare({"other": other, "dying": timed(*[1.0] * done)}, repetitions=done + 1)
    assert gone.exists()


def test_candidates_do_not_take_a_gpus_memory_for_themselves_unless_told_to(monkeypatch):
    shown = candidate("""
        import os
        value = os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]
        print("ready", json.dumps({"value": value}), flush=True)
        for _ in sys.stdin:
            print(1.0, flush=True)
        """)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    assert harness.compare({"a": shown}, repetitions=1)["a"]["value"] == "false"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    assert harness.compare({"a": shown}, repetitions=1)["a"]["value"] == "true"


def test_a_script_shares_the_device_unless_told_otherwise(monkeypatch):
    name = "XLA_PYTHON_CLIENT_PREALLOCATE"
    for before, after in (("true", "true"), (None, "false")):
        monkeypatch.setattr("os.environ", {} if before is None else {name: before})
        harness.share_device()
        assert os.environ[name] == after


def test_results_tell_the_machine_the_versions_the_flags_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_SOME_SETTING", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("EQXFORMER_SECRET", "not told")
    monkeypatch.setattr("sys.argv", ["training_step.py", "--sizes", "nano"])
    path = harness.write(str(tmp_path / "question.py"), "question", {"answer": 42})
    told = json.loads(path.read_text())
    machine = told["machine"]
    assert path == tmp_path / "results" / f"question-{machine['platform']}.json"
    assert told["results"] == {"answer": 42}
    expected = {**harness.ENVIRONMENT, "OMP_NUM_THREADS": "2", "XLA_PYTHON_SOME_SETTING": "1"}
    assert machine["flags"].items() >= expected.items()
    assert "EQXFORMER_SECRET" not in machine["flags"]
    assert machine["command"] == ["training_step.py", "--sizes", "nano"]
    assert machine["versions"]["jax"] == machine["jax"]


def test_versions_are_told_of_installed_packages_only(monkeypatch):
    monkeypatch.setattr(harness, "PACKAGES", ("numpy", "no-such-package"))
    assert list(harness.versions()) == ["numpy"]
