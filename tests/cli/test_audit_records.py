"""`forkpoint audit RUN or ROLLOUTS`: what is printed and stored, exit codes, mistakes in one line."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "audits"))
from stored_example import stored_run

from forkpoint.cli import main as command
from forkpoint.store import RunReader


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """The command: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["forkpoint", "audit", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command.main()
        text = capsys.readouterr()
        return stop.value.code, text.out, text.err

    return called


def rollouts(path, *, correct):
    entries = [
        {"prompt": f"{problem}?", "completion": f"it is {place}", "correct": correct, "step": step}
        for step in range(4)
        for problem in range(48)
        for place in range(2)
    ]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_a_run_is_audited_and_its_findings_are_kept_once(call, tmp_path):
    run = stored_run(tmp_path / "run")
    for _ in range(2):
        code, out, _ = call(run)
        assert code == 0
    assert "rl: 480 rollouts" in out
    assert "base: 96 rollouts" in out
    with RunReader(run) as reader:
        found = reader.findings("rl")
        claims = [finding.claim for finding in found]
        assert len(claims) == len(set(claims))
        assert {"coverage", "advantage_collapse", "mismatch"} <= {finding.audit for finding in found}
        named = [name for finding in found for name in finding.evidence]
        assert named
        assert reader.rollout(named[0]).id == named[0]
    assert "base and rl on 24 problems (final)" in out


def test_a_run_that_may_only_be_read_is_audited_all_the_same(call, tmp_path, monkeypatch):
    run = stored_run(tmp_path / "run")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    code, out, err = call(run)
    assert code == 0
    assert "rl: 480 rollouts" in out
    assert "may only be read: the findings are not stored there" in err
    with RunReader(run) as reader:
        assert reader.findings("rl") == []


def test_fail_on_and_json(call, tmp_path):
    run = stored_run(tmp_path / "run", late=0, problems=48)
    code, out, _ = call(run, "--stage", "rl", "--fail-on", "sick", "--json", "--no-store")
    assert code == 1
    (stage,) = json.loads(out)["stages"]
    sick = {audit["audit"] for audit in stage["audits"] if audit["status"] == "sick"}
    assert {"coverage", "advantage_collapse"} & sick
    assert stage["status"] == "sick"
    with RunReader(run) as reader:
        assert reader.findings() == []
    assert call(run, "--stage", "rl", "--fail-on", "sick", "--only", "mismatch")[0] == 0


def test_foreign_rollouts_with_a_base(call, tmp_path):
    good, bad = rollouts(tmp_path / "good.jsonl", correct=True), rollouts(tmp_path / "bad.jsonl", correct=False)
    code, out, _ = call(bad, "--fail-on", "sick")
    assert code == 1
    assert "advantage_collapse  sick" in out
    assert "mismatch            not run: lacks" in out
    code, out, _ = call(bad, "--base", good, "--only", "coverage", "--json")
    claims = [found["claim"] for found in json.loads(out)["stages"][0]["audits"][0]["findings"]]
    assert any("0.0%" in claim for claim in claims)
    assert code == 0


def test_a_half_written_line_is_told(call, tmp_path):
    path = rollouts(tmp_path / "a.jsonl", correct=True)
    path.write_text(path.read_text() + '{"prompt"')
    assert "1 half-written entries left out" in call(path)[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "neither a run nor a file or folder"),
        (["."], "is no run folder, but holds some, such as run"),
        (["lost"], "lost looks like a run folder, but run.db is missing"),
        (["run", "--only", "coverag"], "Did you mean 'coverage'"),
        (["run", "--stage", "lr"], "It has: base, rl"),
        (["run", "--base", "run"], "write run:STAGE with one of base, rl"),
        (["run", "--base", "run:lr"], "It has: base, rl"),
        (["run", "--format", "trl"], "--format goes with rollouts of another trainer"),
        (["run", "--correct-at", "0"], "--correct-at goes with rollouts of another trainer"),
        (["run", "--fail-on", "bad"], "--fail-on"),
        (["a.jsonl", "--stage", "x"], "has rollouts"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(call, tmp_path, arguments, message):
    stored_run(tmp_path / "run", problems=1)
    rollouts(tmp_path / "a.jsonl", correct=True)
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "recipe.toml").touch()
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_no_torch_is_imported(tmp_path):
    run_python = __import__("subprocess").run
    path = rollouts(tmp_path / "a.jsonl", correct=True)
    program = (
        "import sys\nfrom forkpoint.cli.main import main\n"
        f"sys.argv = ['forkpoint', 'audit', {str(path)!r}, '--json']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = run_python([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def judged_lines(path, **fields):
    """Rollouts whose texts turn to the unsaid while their reward rises."""
    entries = [
        {
            "prompt": f"{problem}?", "completion": f"#### {problem if step < 3 else 'x'}", "correct": True,
            "reward": 0.1 * step, "step": step, "reference": str(problem),
        } | fields
        for step in range(6)
        for problem in range(48)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@pytest.fixture
def judges(tmp_path):
    """Verifiers of a user, in the folder that the command is called in."""
    (tmp_path / "judges.py").write_text(
        "import os\n"
        "def ends(completion, answer):\n    return completion.endswith(answer)\n"
        "def hangs(completion, answer):\n    os._exit(1)\n"
        "def strange(colour):\n    return 1\n"
    )
    return tmp_path


def test_a_held_out_verifier_of_the_user_judges_stored_texts(call, judges):
    path = judged_lines(judges / "a.jsonl")
    code, out, err = call(path, "--held-out", "judges:ends", "--only", "reward_hacking", "--json", "--fail-on", "sick")
    assert (code, err) == (1, "")
    (audit,) = json.loads(out)["stages"][0]["audits"]
    (found,) = [one for one in audit["findings"] if "held-out verifier accepts" in one["claim"]]
    assert (found["value"], found["severity"]) == (-1.0, "sick")
    assert "It fell from update 3 on (95 %: 3 to 3)" in found["claim"]
    assert audit["lacks"] == {"canary answers": ["verifier"]}


def test_a_held_out_verifier_that_cannot_be_asked_is_one_line(call, judges):
    path = judged_lines(judges / "a.jsonl", reference=None)
    code, out, err = call(path, "--held-out", "judges:ends", "--only", "reward_hacking", "--json")
    assert code == 0
    assert "--held-out was not asked: the rollouts lack reference." in err
    (audit,) = json.loads(out)["stages"][0]["audits"]
    assert audit["lacks"]["held-out verifier"] == ["held_out"]
    for name, told in (("judges:strange", "parameter 'colour'"), ("judges", "package.module:function"), ("no:x", "no")):
        code, _, err = call(path, "--held-out", name)
        assert (code, len(err.strip().splitlines())) == (2, 1)
        assert f"--held-out = '{name}'" in err
        assert told in err


def test_a_held_out_verifier_that_dies_judges_none(call, judges):
    path = judges / "few.jsonl"
    entries = [{"prompt": "a", "completion": "b", "correct": True, "reference": "b", "step": step} for step in (1, 2)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    code, _, err = call(path, "--held-out", "judges:hangs", "--only", "reward_hacking")
    assert code == 0
    assert "--held-out = 'judges:hangs' could judge none" in err
