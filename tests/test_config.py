"""The configuration: presets, overrides, precedence, and how a wrong key or value is explained."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lapo_cli.core.config import Config
from lapo_cli.core.config_loading import describe, load_config, override, parse_config, presets
from lapo_cli.core.errors import ConfigError


@pytest.mark.parametrize("preset", presets())
def test_every_preset_loads(preset: str) -> None:
    assert isinstance(load_config(preset), Config)


def test_the_default_preset_is_the_papers() -> None:
    assert load_config() == load_config("paper") == Config()
    assert load_config("quick") != Config()


def test_every_key_has_a_description() -> None:
    keys = describe(Config())
    assert keys["stage1.lr"]["value"] == 3e-4
    assert keys["online.ppo.num_envs"]["value"] == 64
    assert [key for key, about in keys.items() if not about["description"]] == []


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("stage1.lr=3e-4", 3e-4),
        ("stage1.steps=1e5", 100_000),
        ("stage1.steps=2.0e+3", 2_000),
        ("stage1.steps=1_000", 1_000),
        ("precision=fp32", "fp32"),
        ("offline.labels=16", (16,)),
        ("offline.labels=16,32", (16, 32)),
        ("offline.labels=[16, 32]", (16, 32)),
        ("online.ppo.num_envs=8", 8),
        ('data.source="a, b"', "a, b"),
    ],
)
def test_a_dotted_override_sets_one_key(word: str, value: object) -> None:
    key = word.partition("=")[0]
    before, after = describe(Config()), describe(load_config(overrides=[word]))
    assert after[key]["value"] == value
    assert {k: v for k, v in after.items() if k != key} == {k: v for k, v in before.items() if k != key}


def test_a_mapping_sets_the_keys_of_a_section() -> None:
    quantizer = load_config(overrides=["model.quantizer={codebooks: 4, codes: 32}"]).model.quantizer.model_dump()
    assert (quantizer["codebooks"], quantizer["codes"], quantizer["positions"]) == (4, 32, 4)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("stage1.lrr=1", "There is no configuration key 'stage1.lrr': did you mean 'stage1.lr'?"),
        ("stag1.lr=1", "There is no configuration key 'stag1': did you mean 'stage1"),
        ("lr=1", "There is no configuration key 'lr': did you mean 'stage1.lr' or 'stage2.lr' or"),
        ("stage1.learning_rate=1", "'stage1' has the keys steps, batch_size, lr, lr_start"),
        ("plugins=3", "Configuration key 'plugins' has the invalid value 3: it is a section, so set keys in it."),
        ("online.hidden.peak=1", "peak (1) must not come before start (50000)"),
        ("online.ppo.minibatches=4096", "leaves fewer than two of the rollout's 4096 steps for each"),
        ("zzz=1", "There is no configuration key 'zzz': 'lapo info --config' lists all of them."),
        ("stage1.steps=many", "Configuration key 'stage1.steps' has the invalid value 'many': input should be a valid"),
        ("stage1.steps=true", "Configuration key 'stage1.steps' has the invalid value True"),
        ("stage1.steps=1.5", "Configuration key 'stage1.steps' has the invalid value 1.5"),
        ("relabel.idm_network=foo", "'relabel.idm_network' has the invalid value 'foo': input should be 'impala' "),
        ("stage1.steps=0", "Configuration key 'stage1.steps' has the invalid value 0: input should be greater than"),
        ("stage1.steps=", "Configuration key 'stage1.steps' has the invalid value None"),
        ("model.quantizer.commitment=inf", "Configuration key 'model.quantizer.commitment' has the invalid value inf"),
        ("model.quantizer.commitment=nan", "Configuration key 'model.quantizer.commitment' has the invalid value nan"),
        ("model.frame_size=48", "Configuration key 'model.frame_size' has the invalid value 48"),
        ("offline.labels=16,0", "every number of labelled frames must be at least 1"),
        ("offline.labels=16,x", "Configuration key 'offline.labels.1' has the invalid value 'x'"),
        ("online.ppo.num_envs=7", "num_envs (7) must be a multiple of env_groups"),
        ("stage1.lr", "'--set stage1.lr' has no '='"),
        ("stage1.lr=[", "'--set stage1.lr=[' cannot be read as YAML"),
    ],
)
def test_a_wrong_override_is_explained(word: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(overrides=[word])
    assert sentence in str(raised.value)
    assert raised.value.exit_code == 2


def test_an_unknown_preset_names_the_others() -> None:
    with pytest.raises(ConfigError, match="no preset 'fast': choose one of paper, quick"):
        load_config("fast")


def test_a_file_wins_over_the_preset_and_set_over_both(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("stage1: {lr: 2e-3, steps: 77}\n")
    config = load_config("quick", file, ["stage1.steps=78"])
    assert (config.stage1.lr, config.stage1.steps) == (2e-3, 78)
    assert config.stage2 == load_config("quick").stage2
    assert override(load_config("quick"), ["stage1.steps=78"], file) == config


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a: [", "cannot be read as YAML"),
        ("- 1\n- 2\n", "must be a mapping of configuration keys, not a list"),
        ("stage1: {lrr: 1}\n", "did you mean 'stage1.lr'?"),
        ("stage1: 3\n", "Configuration key 'stage1' has the invalid value 3"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as raised:
        load_config(file=file)
    assert sentence in str(raised.value)


_LONG = "x" * 90_000


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x, x]\nb: &b [*a, *a]\nstage1: *b\n",
        "stage1: &a {lr: *a}\n",
        "stage1: " + "{a: " * 1000,
        "stage1: {steps: " + "1" * 5000 + "}",
        "stage1: {steps: 0x" + "f" * 5000 + "}",
        "stage1: {steps: 1e300}",
        f"stage1: {{{_LONG}: 1}}",
        f"{_LONG}: 1",
        f"precision: {_LONG}",
        f"offline: {{labels: [{'x, ' * 20_000}]}}",
        f"stage1: {_LONG}",
        f"? {{{_LONG}: 1}}\n: 2",
        f"!{_LONG} a",
        "x" * 2_000_000,
        "1: 2",
        "stage1:",
    ],
)
def test_a_hostile_file_is_one_short_sentence(tmp_path: Path, content: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as raised:
        load_config(file=file)
    assert len(str(raised.value)) < 500


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"/dev/zero cannot be read as YAML \(it is larger than 100 kB\)"):
        load_config(file=Path("/dev/zero"))


@pytest.mark.parametrize(
    "word", [_LONG, f"stage1.{_LONG}=1", f"stage1.lr={_LONG}", f"{_LONG}=1", f"stage1.lr=[{_LONG}", "stage1.lr=&a [*a]"]
)
def test_a_long_override_is_one_short_sentence(word: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(overrides=[word])
    assert len(str(raised.value)) < 500


def test_a_section_is_never_replaced_by_something_else() -> None:
    with pytest.raises(ConfigError, match=r"'stage1' has the invalid value 3: it is a section"):
        load_config("quick", overrides=["stage1=3", "stage1.lr=1e-3"])
    with pytest.raises(ConfigError, match=r"'online\.ppo' has the invalid value None"):
        load_config("quick", overrides=["online.ppo="])


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml cannot be read"):
        load_config(file=tmp_path / "absent.yaml")


_RATE = st.floats(1e-12, 0.9)
_CONFIGS = st.builds(
    lambda lr, decay, steps, labels, frame_size, precision: override(
        {
            "precision": precision,
            "model": {"quantizer": {"ema_decay": decay}, "frame_size": frame_size},
            "stage1": {"lr": lr, "steps": steps},
            "offline": {"labels": labels},
        }
    ),
    _RATE,
    _RATE,
    st.integers(1, 10**12),
    st.lists(st.integers(1, 10**6), min_size=1, max_size=5),
    st.sampled_from([16, 32, 64]),
    st.sampled_from(["auto", "fp32", "bf16"]),
)


@given(_CONFIGS)
def test_a_configuration_survives_yaml(config: Config) -> None:
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert parse_config(yaml.safe_load(text)) == config


@given(_RATE)
def test_a_number_survives_set(rate: float) -> None:
    assert load_config(overrides=[f"stage1.lr={rate!r}"]).stage1.lr == rate
