"""The page shows what runs have left, says what is missing, and needs nothing but itself."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lapo_cli.core.errors import DiskFullError, RunDirError
from lapo_cli.core.evaluation import evaluate, measurements
from lapo_cli.core.evaluation.summary import ALL_GAMES, Failure
from lapo_cli.core.report import page
from lapo_cli.core.report.images import write_images
from lapo_cli.core.report.panels import over_games
from lapo_cli.core.report.results import read_run
from lapo_cli.core.report.tables import policy_rows, summarize
from lapo_cli.core.run_dir import RunDir
from tests.core.report.run_files import write_run, write_stage

_VOID = {"meta", "link", "img", "input", "br"}


class _Html(HTMLParser):
    """Text, tags and attributes; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.links, self.ids = "", [], [], []  # type: ignore[var-annotated]
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self._open.append(tag)
        of_tag = dict(attrs)
        self.links += [of_tag[name] or "" for name in ("src", "href", "xlink:href") if name in of_tag]
        self.ids += [of_tag["id"]] if "id" in of_tag else []
        if tag == "img":
            assert "alt" in of_tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += " " + " ".join(data.split())


def _page(run: RunDir, *others: RunDir) -> _Html:
    return _Html(page.make([run.path, *(other.path for other in others)]).read_text())


def _said(text: str) -> str:
    return " ".join(text.split())


def test_a_finished_run_is_shown_whole_and_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["maze"], [0, 1])
    html = _page(run)
    for sentence in (
        "LAPO decoded offline, 256 labels",
        "demonstrations (expert)",
        "7.5",  # the paper's return of decoding from 256 labels
        "Which latent actions are alike?",
        "LEFT-like (80%)",
        "What does each latent action do?",
        "How does each policy play?",
        "closer to what happened than repeating the first frame for 2 steps",
        "stage1.steps",
        "a CPU fp32",
        "There are games with 2 training seeds",
        "Train more, for example --seeds 0,1,2.",
    ):
        assert sentence in _said(html.text), sentence
    assert html.tags.count("svg") == 9
    assert html.tags.count("canvas") == 3 + 5 + 2
    assert [link for link in html.links if not link.startswith(("#", "data:"))] == []
    assert len(html.ids) == len(set(html.ids))
    text = (run.path / page.REPORT).read_text()
    assert re.findall(r"url\((?!#)", text) == []
    # No address anywhere but the names of XML, which nothing fetches.
    assert set(re.findall(r"https?://[^\"'\s<)]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_intervals_and_means_are_those_of_the_returns(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", ["maze"], [0, 1]).path)
    (random, demonstrations, *_, scratch) = policy_rows(run, "maze")
    assert random.estimate.mean == pytest.approx((4.5 + 5.0) / 2)
    assert random.normalized == pytest.approx((random.estimate.mean - 4) / 6)
    assert (demonstrations.episodes, demonstrations.seeds, demonstrations.published) == (2, 1, 10.0)
    assert (scratch.stage, scratch.seeds, scratch.published) == ("scratch", 2, 7.4)
    assert (random.share, demonstrations.share) == (0, 1)
    between = demonstrations.estimate.mean - random.estimate.mean
    assert scratch.share == pytest.approx((scratch.estimate.mean - random.estimate.mean) / between)
    assert scratch.estimate.low <= scratch.estimate.mean <= scratch.estimate.high


def test_a_summary_pools_seeds_and_has_each_by_itself(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", ["bigfish", "maze"], [0, 2]).path)
    failure = Failure("heist", 1, "There is no data.")
    summary = summarize(run, [failure], tmp_path)
    policies = [row.title for row in policy_rows(run, "maze")]
    assert [(row.game, row.title) for row in summary.rows] == [
        (game, title) for game in ("bigfish", "maze", ALL_GAMES) for title in policies
    ]
    assert {seed: [(row.game, row.title) for row in rows] for seed, rows in summary.by_seed.items()} == {
        seed: [(game, title) for game in ("bigfish", "maze") for title in policies] for seed in (0, 2)
    }
    random = {seed: rows[0] for seed, rows in summary.by_seed.items()}
    assert (random[0].mean, random[2].mean, summary.rows[0].mean) == (4.5, 5.5, 5.0)
    assert (random[0].seeds, random[0].episodes, summary.rows[0].seeds, summary.rows[0].episodes) == (1, 2, 2, 4)
    assert summary.failures == [failure]
    probes = [note for note in summary.notes if " probe: " in note]
    assert [note.split(" probe: ")[0] for note in probes] == ["bigfish/0", "bigfish/2", "maze/0", "maze/2"]
    assert "with accuracy 0.70 (majority baseline: 0.40, an untrained network's latent action: 0.50)." in probes[0]

    online = summarize(run, [], tmp_path, "online")
    titles = ["random policy", "demonstrations (expert)", "LAPO fine-tuned online, 200 steps"]
    assert [row.title for row in online.rows if row.game == "maze"] == titles


def test_several_games_have_statistics_and_a_profile(tmp_path: Path) -> None:
    html = _page(write_run(tmp_path / "run", ["bigfish", "maze"], [0, 1]))
    assert "Normalized return over all games" in html.text
    assert "better than scratch" in html.text
    assert "Performance profile" in html.text
    assert html.text.index("bigfish") < html.text.index("maze")


def test_runs_are_compared_in_one_page(tmp_path: Path) -> None:
    one, other = (write_run(tmp_path / name / "quick", ["maze"]) for name in ("mine", "yours"))
    html = _page(one, other)
    assert (one.path / page.COMPARISON).exists()
    assert "Comparison of runs" in html.text
    assert {"mine/quick", "yours/quick"} <= set(html.text.split())
    text = (one.path / page.COMPARISON).read_text()
    assert "mine/quick: LAPO fine-tuned online" in text
    table = re.findall(r'<td>(\w+)/quick</td>\s*<th scope="row">([^<]+)</th>', text)
    assert table[:4] == [
        (run, policy) for policy in ("random policy", "demonstrations (expert)") for run in ("mine", "yours")
    ]
    assert not (other.path / page.COMPARISON).exists()


def test_means_of_several_runs_are_over_the_games_that_all_of_them_have(tmp_path: Path) -> None:
    wide = write_run(tmp_path / "wide", ["maze", "coinrun", "heist"])
    narrow = write_run(tmp_path / "narrow", ["coinrun", "maze"])
    assert "Normalized return over the 2 games that all runs have" in _page(wide, narrow).text
    single = write_run(tmp_path / "single", ["maze"])
    assert "Normalized return over" not in _page(wide, single).text


def test_a_warning_says_of_which_of_several_runs_it_is(tmp_path: Path) -> None:
    one, other = write_run(tmp_path / "one"), write_run(tmp_path / "other", unfinished=["online"])
    assert "other, maze, seed 0: Not finished: LAPO fine-tuned online." in _said(_page(one, other).text)
    assert "maze, seed 0: Not finished" in _said(_page(other).text)
    assert "other, maze" not in _page(other).text


def test_means_over_games_are_of_what_every_game_has(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", ["bigfish", "maze"])
    shutil.rmtree(run.seed_dir("maze", 0).path / "scratch")
    results = read_run(run.path)
    online, offline = over_games(results, {game: policy_rows(results, game) for game in results.games})
    assert online.title == "Mean of 2 games against environment steps, beside the mean of the paper's 16"
    assert online.alt == (
        "LAPO fine-tuned online: 0.17 to 0.50; paper: RL + SL: 0.45 to 1.00; paper: PPO from scratch: 0.11 to 0.44"
    )
    assert online.note.endswith("A point at 0 is drawn at the left end.")
    assert offline.alt == "LAPO decoded offline: 0.25 to 0.42; paper: decoded offline: 0.05 to 0.57"


def test_stage_1_alone_is_shown_and_the_rest_is_said_to_be_missing(tmp_path: Path) -> None:
    html = _page(write_run(tmp_path / "run", stages=["idm"], acting=False))
    assert "What does each latent action do?" in html.text
    assert "There is no curve: no policy was trained by acting" in html.text


def test_a_run_that_cannot_act_here_says_that_nothing_was_evaluated(tmp_path: Path) -> None:
    html = _page(write_run(tmp_path / "run", acting=False, actions=False))
    assert "maze: no policy has been evaluated." in _said(html.text)
    assert "1: not known" not in html.text
    assert "The true actions are not known, so the points have no colours." in html.text
    assert "cluster 1" in html.text
    assert "no actions" in html.text
    assert "Do clusters of latent actions mean true actions?" not in html.text


def test_a_run_without_any_measurement_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", stages=["scratch"])
    html = _page(run)
    assert "Nothing is known of the latent actions" in html.text
    assert "There are no rollouts" in html.text


def test_a_run_that_is_going_on_shows_what_there_is(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", unfinished=["online"])
    with (run.seed_dir("maze", 0).path / "online" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "seco')  # A line that is being written.
    with run.lock():
        html = _page(run)
    assert "Not finished: LAPO fine-tuned online. Run the same command again: it resumes." in _said(html.text)
    assert "LAPO fine-tuned online, 5.00 to 7.00" in (run.path / page.REPORT).read_text()


def test_an_empty_run_has_a_page_too(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", games=[])
    assert "no game has been begun" in _page(run).text


def test_failures_of_the_summary_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    failure = {"game": "heist", "seed": 2, "message": "There is no data: get <some>."}
    (run.path / "summary.json").write_text(json.dumps({"failures": [failure]}))
    assert "Failed: heist, seed 2: There is no data: get <some>." in _page(run).text


def test_names_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & $x^$ \"q\""
    run = write_run(tmp_path / "<b>run $y^$", labels={"online": evil, "offline": evil}, names=(evil, "B", "C"))
    html = _page(run)
    assert html.tags.count("script") == 1
    assert "b" not in html.tags
    assert "<script>alert('x')</script> & $x^$" in html.text


def test_results_of_weights_that_were_replaced_are_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    stage = run.seed_dir("maze", 0).stage("scratch")
    (stage.path / "done.json").unlink()
    write_stage(stage, "PPO from scratch", results={"another": "training"})
    titles = [policy.method for seed in read_run(run.path).seeds for policy in seed.policies]
    assert "PPO from scratch" not in titles
    assert "LAPO fine-tuned online" in titles


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (f"{evaluate.FOLDER}/online.json", b"{"),
        (f"{evaluate.FOLDER}/online.json", b'{"returns": [1e999]}'),
        (f"{evaluate.FOLDER}/online.webp", b"RIFF"),
        (f"{measurements.FOLDER}/latents.json", b"[]"),
        (f"{measurements.FOLDER}/rollouts.webp", b""),
        (f"{measurements.FOLDER}/imagination.json", b'{"horizon": "x"}'),
        (
            f"{measurements.FOLDER}/latents.json",
            b'{"method": "PCA", "points": [[0, 0]], "clusters": [], "actions": null, "purity": null, "codes": null}',
        ),
        ("idm/done.json", b"{}"),
        ("idm/metrics.jsonl", b"\xff\n"),
    ],
)
def test_a_damaged_file_is_named_and_the_rest_is_shown(tmp_path: Path, file: str, content: bytes) -> None:
    run = write_run(tmp_path / "run")
    (run.seed_dir("maze", 0).path / file).write_bytes(content)
    html = _page(run)
    assert Path(file).name.split(".")[0] in html.text
    assert re.search("damaged|missing", html.text)
    assert "PPO from scratch" in html.text


def test_a_full_disk_leaves_the_old_report_as_it_was(tmp_path: Path, small_disk: Path) -> None:
    run = write_run(small_disk / "run", stages=["scratch"])
    old = page.make([run.path]).read_bytes()
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - 20_000))
    with pytest.raises(DiskFullError):
        page.make([run.path])
    assert (run.path / page.REPORT).read_bytes() == old
    assert [file for file in run.path.iterdir() if file.suffix == ".tmp"] == []


def test_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="is not a run directory"):
        page.make([tmp_path])


def test_the_same_files_give_the_same_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert page.make([run.path]).read_bytes() == page.make([run.path]).read_bytes()


def test_images_are_drawn_where_there_is_a_curve(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run").path)
    assert [file.name for file in write_images(run, tmp_path)] == ["offline.png", "online.png"]
    nothing = read_run(write_run(tmp_path / "other", stages=["idm"]).path)
    assert write_images(nothing, tmp_path) == []


@pytest.mark.slow
def test_sixteen_games_with_three_seeds_fit_into_a_mail(tmp_path: Path) -> None:
    from lapo_cli.core.envs.procgen import GAMES

    file = page.make([write_run(tmp_path / "run", GAMES, [0, 1, 2]).path])
    assert file.stat().st_size < 15_000_000
