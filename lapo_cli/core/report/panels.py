"""From the results of runs to the figures and films of the report, game by game."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lapo_cli.core.errors import CorruptDataError
from lapo_cli.core.evaluation import sheets
from lapo_cli.core.evaluation.measurements import FOLDER
from lapo_cli.core.evaluation.statistics import mean_of_evaluations
from lapo_cli.core.evaluation.summary import Row
from lapo_cli.core.report import films, paper
from lapo_cli.core.report.figures import code_usage, codes, confusion, curves, horizon, latent_map
from lapo_cli.core.report.figures.curves import Line
from lapo_cli.core.report.figures.style import Draw
from lapo_cli.core.report.films import Film
from lapo_cli.core.report.results import Policy, RunResults, SeedResults, trusted_steps

_LABELS_SHOWN = 256


@dataclass(frozen=True)
class Panel:
    """A figure of the page.

    Attributes:
        title: its heading, which says what it answers.
        alt: what it shows, in words for screen readers.
        note: the sentence below it.
        draw: draws it; None where there is nothing to draw, and the note says why.
        height: inches.
    """

    title: str
    alt: str
    note: str
    draw: Draw | None
    height: float = 3.1


@dataclass(frozen=True)
class Reel:
    """Films that play together.

    Attributes:
        title, note: as for a panel.
        films: what plays.
        start: the frame that is shown first.
    """

    title: str
    note: str
    films: list[Film] = field(default_factory=list)
    start: int = 0


@dataclass(frozen=True)
class Strips:
    """Rows of o_t, o_{t+1}, the prediction and its error, multiplied by ``error_gain``, as one picture."""

    source: str
    rows: int
    error_gain: int


def _named(run: RunResults, runs: Sequence[RunResults], text: str) -> str:
    return f"{run.name}: {text}" if len(runs) > 1 else text


def online_lines(runs: Sequence[RunResults], game: str) -> list[Line]:
    """Return on unseen levels against environment steps, a line for each training, with intervals over its seeds."""
    lines = []
    for run in runs:
        seeds = run.of(game)
        for name in dict.fromkeys(name for seed in seeds for name in seed.stages):
            begun = [seed.stages[name] for seed in seeds if name in seed.stages]
            # One that has just begun would cut the curve of the others short.
            of_stage = [stage for stage in begun if stage.done] or begun
            evaluations = [stage.evaluations for stage in of_stage]
            steps = sorted(set.intersection(*(set(found) for found in evaluations)))
            if steps:
                estimates = [mean_of_evaluations([found[step] for found in evaluations]) for step in steps]
                lines.append(Line.of(_named(run, runs, of_stage[0].label), steps, estimates))
    return lines


def offline_lines(rows: Mapping[str, Sequence[Row]]) -> list[Line]:
    """Return against labelled frames, a line for each method.

    Args:
        rows: of one game, by the name of their run.
    """
    methods: dict[str, list[Row]] = {}
    for run, of_run in rows.items():
        for row in of_run:
            if row.labels is not None:
                methods.setdefault(f"{run}: {row.method}" if len(rows) > 1 else row.method, []).append(row)
    return [
        Line.of(label, [row.labels or 0 for row in of_method], [row.estimate for row in of_method])
        for label, of_method in methods.items()
    ]


def levels_of(rows: Mapping[str, Sequence[Row]]) -> list[tuple[str, float]]:
    """Names and mean returns of what curves are compared with: the first run's random policy and demonstrations."""
    found: dict[str, float] = {}
    for row in (row for of_run in rows.values() for row in of_run if not row.stage):
        found.setdefault(row.method, row.estimate.mean)
    return list(found.items())


def online(runs: Sequence[RunResults], game: str, rows: Mapping[str, Sequence[Row]]) -> Panel:
    """How fast it learns to act."""
    lines = online_lines(runs, game)
    title = "Return against environment steps"
    if not lines:
        return Panel(
            title, "", "There is no curve: no policy was trained by acting, or evaluation.curve_points was 0.", None
        )
    return Panel(
        title,
        f"Mean returns on {game} from the first to the last evaluation: "
        + "; ".join(f"{line.label}, {line.mean[0]:.2f} to {line.mean[-1]:.2f}" for line in lines),
        "Each point is an evaluation of the policy as it was then on levels that no training has; every episode that "
        "was started is counted. Bands: 95 %, over training seeds and episodes.",
        lambda axes: curves.draw(
            axes, lines, x_label="environment steps", y_label="mean return", levels=levels_of(rows)
        ),
    )


def offline(rows: Mapping[str, Sequence[Row]]) -> Panel:
    """How many labels it needs."""
    lines = offline_lines(rows)
    title = "Return against labelled frames"
    if not lines:
        return Panel(
            title, "", "There is no curve: nothing was decoded from labelled frames, or it cannot act here.", None
        )
    return Panel(
        title,
        "; ".join(
            f"{line.label}: " + ", ".join(f"{m:.2f} with {x:,.0f}" for x, m in zip(line.x, line.mean, strict=True))
            for line in lines
        ),
        "Bands: 95 % bootstrap intervals over training seeds, then episodes.",
        lambda axes: curves.draw(
            axes, lines, x_label="labelled frames", y_label="mean return", levels=levels_of(rows), log=2
        ),
    )


def over_games(run: RunResults, rows: Mapping[str, Sequence[Row]]) -> list[Panel]:
    """Means over games beside the paper's, online and offline, of the methods that have a curve on every game.

    Args:
        rows: by their game.
    """
    seeds = {game: run.of(game)[0] for game in run.games if run.of(game)[0].normalize(0.0) is not None}
    stages = {name for seed in run.seeds for name in seed.stages}
    online = {game: online_lines([run], game) for game in seeds}
    offline = {game: offline_lines({run.name: rows[game]}) for game in seeds}
    of_paper = [
        Line(label, paper.STEPS, values, published=True)
        for stage, (label, values) in paper.ONLINE.items()
        if stage in stages
    ]
    found = [
        _over_games(seeds, online, of_paper, "environment steps", 10),
        _over_games(
            seeds,
            offline,
            [Line("paper: decoded offline", paper.LABELS, paper.OFFLINE, published=True)],
            "labelled frames",
            2,
        ),
    ]
    return [panel for panel in found if panel is not None]


def _over_games(
    seeds: Mapping[str, SeedResults],
    of_game: Mapping[str, Sequence[Line]],
    of_paper: Sequence[Line],
    x_label: str,
    base: int,
) -> Panel | None:
    normalized: dict[str, list[dict[float, float]]] = {}
    for game, lines_of in of_game.items():
        for line in lines_of:
            values = [seeds[game].normalize(mean) or 0.0 for mean in line.mean]
            normalized.setdefault(line.label, []).append(dict(zip(line.x, values, strict=True)))
    lines = []
    for label, found in normalized.items():
        shared = sorted(set.intersection(*(set(points) for points in found)))
        if len(found) == len(seeds) and shared:
            lines.append(Line(label, shared, [float(np.mean([points[x] for points in found])) for x in shared]))
    if not lines:
        return None
    left = " A point at 0 is drawn at the left end." if any(0 in line.x for line in lines) else ""
    lines += of_paper
    which = f"Mean of {len(seeds)} games" if len(seeds) > 1 else "".join(seeds)
    return Panel(
        f"{which} against {x_label}, beside the mean of the paper's 16",
        "; ".join(f"{line.label}: {line.mean[0]:.2f} to {line.mean[-1]:.2f}" for line in lines),
        f"Dashed: {paper.NOTE}.{left}",
        lambda axes: curves.draw(axes, lines, x_label=x_label, y_label="normalized return", log=base),
        3.6,
    )


def action_names(seed: SeedResults) -> list[str]:
    """Names of the true actions; numbers where they have none."""
    names = seed.demonstrations["action_names"] if seed.demonstrations else []
    taken = (seed.latents["actions"] if seed.latents is not None else None) or []
    count = max([len(names), *(action + 1 for action in taken if action is not None)])
    return [names[i] if i < len(names) else f"action {i}" for i in range(count)]


def _action_counts(clusters: Sequence[int], actions: Sequence[int | None], num_actions: int) -> NDArray[np.int64]:
    """How often each cluster has each action, (clusters, num_actions), of the members whose action is known."""
    table = np.zeros((max(clusters, default=-1) + 1, num_actions), np.int64)
    for cluster, action in zip(clusters, actions, strict=True):
        if action is not None:
            table[cluster, action] += 1
    return table


def cluster_names(seed: SeedResults) -> list[str]:
    """Each cluster of latent actions by its number and, where actions are known, the most frequent one of its members.

    A cluster is "like" an action only if most of its members have it.
    """
    assert seed.latents is not None
    count = max(seed.latents["clusters"], default=-1) + 1
    if seed.latents["actions"] is None:
        return [f"cluster {i + 1}" for i in range(count)]
    names = action_names(seed)
    table = _action_counts(seed.latents["clusters"], seed.latents["actions"], len(names))
    titles = []
    for number, row in enumerate(table):
        share = row.max() / max(1, row.sum())
        kind = f"{names[row.argmax()]}-like" if share >= 0.5 else "mixed"
        titles.append(f"{number + 1}: {kind} ({share:.0%})" if row.sum() else f"{number + 1}: not known")
    return titles


def latent_panels(seed: SeedResults) -> list[Panel]:
    """What a latent action is."""
    found = seed.latents
    panels = []
    if found is not None:
        panels.append(_map(seed))
        if found["actions"] is not None:
            names = action_names(seed)
            table = _action_counts(found["clusters"], found["actions"], len(names))
            rows = cluster_names(seed)
            top = table.max(1).sum() / max(1, table.sum())
            panels.append(
                Panel(
                    "Do clusters of latent actions mean true actions?",
                    "Share of true actions in each cluster: " + "; ".join(rows),
                    f"Clusters by k-means. Guessing the most frequent action of its cluster is right for {top:.0%} of "
                    f"the frames; without clusters, for {table.sum(0).max() / max(1, table.sum()):.0%}.",
                    lambda axes: confusion.draw(axes, table, rows, names),
                )
            )
        if found["codes"] is not None:
            counts = found["codes"]
            used = sum(np.count_nonzero(book) for book in counts)
            panels.append(
                Panel(
                    "Are all codes used?",
                    f"{used} of {sum(map(len, counts))} codes occur in {len(found['clusters']):,} held-out frames.",
                    f"{used} of {sum(map(len, counts))} codes occur in {len(found['clusters']):,} held-out frames.",
                    lambda axes: codes.draw(axes, counts),
                )
            )
    training = _training_lines(seed)
    if training:
        panels.append(
            Panel(
                "Code usage and probe during training",
                "; ".join(f"{name}: {values[0]:.2f} to {values[-1]:.2f}" for name, (_, values) in training.items()),
                "The probe reads the true action off the latent action of held-out frames; it measures only.",
                lambda axes: code_usage.draw(axes, training),
            )
        )
    return panels


def _map(seed: SeedResults) -> Panel:
    found = seed.latents
    assert found is not None
    groups: list[int | None] | None = found["actions"]
    names = action_names(seed)
    axis_names = ("component 1", "component 2") if found["method"] == "PCA" else ("UMAP 1", "UMAP 2")
    note = f"{len(found['points']):,} held-out frames, projected by {found['method']}."
    if found["purity"] is not None:
        purity = found["purity"]
        note += (
            f" Of the {purity['neighbours']} nearest neighbours {purity['map']:.0%} have the same true action on the "
            f"map, {purity['latent']:.0%} in the space of latent actions; {purity['chance']:.0%} would by chance."
        )
    else:
        note += " The true actions are not known, so the points have no colours."
    if found["method"] == "PCA":
        note += " PCA shows only the two directions of largest variance; lapo-cli[umap] gives a finer map."
    return Panel(
        "Which latent actions are alike?",
        note,
        note,
        lambda axes: latent_map.draw(axes, found["points"], groups, names, axis_names),
        3.9,
    )


def _training_lines(seed: SeedResults) -> dict[str, tuple[list[int], list[float]]]:
    idm = seed.stages.get("idm")
    if idm is None:
        return {}
    names = {
        "codes in use": "val/code_usage",
        "probe accuracy": "probe/accuracy",
        "always the most frequent action": "probe/majority_baseline",
    }
    lines = {label: idm.curve(name) for label, name in names.items()}
    untrained = idm.results.get("probe/untrained")
    steps = lines["probe accuracy"][0]
    if untrained is not None and steps:
        lines["probe on an untrained network"] = (steps, [float(untrained)] * len(steps))
    return {label: line for label, line in lines.items() if line[0]}


def error_panel(seed: SeedResults) -> Panel | None:
    """How far the world model's rollouts can be trusted."""
    if seed.imagined is None:
        return None
    errors, trusted = seed.imagined["errors"], trusted_steps(seed.imagined["errors"])
    for_steps = "for 1 step" if trusted == 1 else f"for {trusted} steps"
    ends = "to the end of what was measured" if trusted == seed.imagined["horizon"] else for_steps
    note = (
        f"Rollouts under the latent actions that were inferred from {seed.imagined['sequences']} real sequences are "
        f"closer to what happened than repeating the first frame {ends}: look at the films no further than that."
    )
    return Panel("How far can the world model be trusted?", note, note, lambda axes: horizon.draw(axes, errors))


def imagination(seed: SeedResults, most_bytes: int) -> Reel | None:
    """What a latent action does: one rollout for each cluster, beside what happened.

    Raises:
        CorruptDataError: the film's file is missing or damaged.
    """
    if seed.imagined is None or seed.latents is None:
        return None
    about = seed.imagined["films"]
    of_film = films.clips_of(seed.path / FOLDER / "rollouts.webp", about)
    names = cluster_names(seed)
    if len(of_film) != len(names) + 1:
        raise CorruptDataError(f"Films and clusters in {seed.path / FOLDER} differ: delete both and evaluate again.")
    sizes = np.bincount(seed.latents["clusters"])
    captions = [f"{size / sizes.sum():.0%} of the frames" for size in sizes]
    clips = [
        films.Clip(label, caption, frames)
        for label, caption, frames in zip(["what happened", *names], ["real frames", *captions], of_film, strict=True)
    ]
    return Reel(
        "What does each latent action do?",
        f"Imagined by the world model from one real frame (of {seed.imagined['candidates']}, the one from which the "
        f"predictions differ most): {seed.imagined['horizon']} steps under the same latent action, the most typical of "
        "its cluster, each prediction fed back as the next frame.",
        films.encode(clips, most_bytes),
        max(1, trusted_steps(seed.imagined["errors"])),
    )


def strips(seed: SeedResults) -> Strips | None:
    """Single predictions beside what happened.

    Raises:
        CorruptDataError: the file is missing or damaged.
    """
    if seed.imagined is None:
        return None
    cells = sheets.read(seed.path / FOLDER / "strips.webp", seed.imagined["strips"])
    # A grey edge, because the pictures of some games run into one another.
    cells = np.pad(cells, ((0, 0), (0, 1), (0, 1), (0, 0)), constant_values=128)
    rows = cells.reshape(-1, 4, *cells.shape[1:])
    # A column of rows, so that the page can name the four columns.
    tall = rows.transpose(0, 2, 1, 3, 4).reshape(1, rows.shape[0] * rows.shape[2], 4 * rows.shape[3], 3)
    return Strips(films.picture(tall), len(rows), seed.imagined["strips"].get("error_gain", 4))


def playing(seed: SeedResults, most_bytes: int) -> tuple[Reel, Reel]:
    """How the policies play: each on the same level, and the best trained one on many levels.

    Raises:
        CorruptDataError: a film's file is missing or damaged.
    """
    filmed = [policy for policy in seed.policies if policy.film is not None]
    labels = [policy.labels for policy in filmed if policy.labels is not None]
    shown = min(labels, key=lambda count: (abs(count - _LABELS_SHOWN), count), default=None)
    chosen = [policy for policy in filmed if policy.labels in (None, shown)]
    same = [clip for policy in chosen if (clip := _clip(policy, 0)) is not None]
    level = Reel(
        "How does each policy play?",
        "The first of the evaluation's levels, the same for every policy, which no training has seen; demonstrations "
        "were recorded on levels of their own. Actions are sampled. Films begin at the first step and may end before "
        "the episode does.",
        films.encode(same, most_bytes * 2 // 3),
    )
    trained = [policy for policy in filmed if policy.stage]
    many: list[films.Clip] = []
    note = "No trained policy has been filmed."
    if trained:
        best = max(trained, key=lambda policy: policy.returns.mean())
        many = [clip for number in range(1, 9) if (clip := _clip(best, number)) is not None]
        note = f"{best.title}: the policy with the highest mean return ({best.returns.mean():.2f}), on the next levels."
    return level, Reel("How does the best one play elsewhere?", note, films.encode(many, most_bytes // 3))


def _clip(policy: Policy, level: int) -> films.Clip | None:
    assert policy.film is not None
    file, about = policy.film
    if level >= about["levels"]:
        return None
    frames: NDArray[np.uint8] = films.clips_of(file, about)[level]
    returns = about.get("returns")
    caption = "recorded" if returns is None else f"return of this episode: {returns[level]:.4g}"
    label = policy.title if level == 0 else f"level {level + 1}"
    return films.Clip(label, caption, frames, about.get("every", 1))
