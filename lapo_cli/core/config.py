"""Typed, validated configuration: what each number is, its bounds, and where the paper gives it.

The defaults in this module are the preset ``paper``; :mod:`lapo_cli.core.config_loading` reads everything else.

A choice among variants is a section with a ``kind``; each variant's class is registered beside the module that it
builds (:data:`QUANTIZERS`, :data:`POLICY_TARGETS`). Stages that plugins add have their sections below ``plugins``.
"""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    SerializeAsAny,
    TypeAdapter,
    field_validator,
    model_validator,
)

from lapo_cli.core.errors import UnknownNameError
from lapo_cli.core.registry import Registry

if TYPE_CHECKING:
    from lapo_cli.core.models.policy_targets.base import PolicyTarget
    from lapo_cli.core.models.quantizers.base import Quantizer


class Section(BaseModel):
    """A part of the configuration, immutable; unknown keys are refused."""

    # Strict, so that 'true' is no number of steps; finite, so that no loss is weighted with infinity.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


class QuantizerConfig(Section, ABC):
    """Settings of a quantizer of latent actions; every subclass sets ``kind`` and is registered in QUANTIZERS."""

    kind: str = Field(description="Which quantizer of latent actions.")

    @property
    @abstractmethod
    def la_dim(self) -> int:
        """Size of a latent action."""

    @abstractmethod
    def build(self) -> "Quantizer":
        """The quantizer, untrained."""


class PolicyTargetConfig(Section, ABC):
    """Settings of what the latent policy predicts; every subclass sets ``kind`` and is registered in POLICY_TARGETS."""

    kind: str = Field(description="What the latent policy predicts.")

    @abstractmethod
    def build(self, quantizer: "Quantizer") -> "PolicyTarget":
        """The target for latent actions of the inverse dynamics model that has this quantizer."""


def _kind(variant: type[Section]) -> str:
    return str(variant.model_fields["kind"].default)


QUANTIZERS: Registry[type[QuantizerConfig]] = Registry(
    "quantizer", "lapo.quantizers", "lapo_cli.core.models.quantizers", _kind
)
POLICY_TARGETS: Registry[type[PolicyTargetConfig]] = Registry(
    "policy target", "lapo.policy_targets", "lapo_cli.core.models.policy_targets", _kind
)
PLUGIN_SECTIONS: dict[str, type[Section]] = {}
"""Name of a stage that a plugin adds -> the class of its section; filled when stages are registered."""
_INSTALLED_STAGES: Registry[Any] = Registry("stage", "lapo.stages")  # For their sections; they are stages elsewhere.

_V = TypeVar("_V", bound=Section)


def _variant(registry: Registry[type[_V]], default: str) -> PlainValidator:
    """Validate a section as the class registered under its ``kind``: a discriminated union that stays open."""

    def validate(value: Any) -> Any:
        if type(value) in registry.values():
            return value
        kind = value.get("kind", default) if isinstance(value, dict) else None
        if not isinstance(kind, str):
            raise ValueError(f"a mapping with a kind is expected, one of {', '.join(registry.names())}")
        try:
            variant = registry.get(kind)
        except UnknownNameError as error:
            raise ValueError(str(error).rstrip(".")) from error
        return variant.model_validate(value)

    return PlainValidator(validate)


class DataConfig(Section):
    """Which frames stages 1 and 2 see."""

    source: str = Field(
        default="drive",
        description="Where run-all gets missing games: drive (official), demos (bundled), or another source.",
    )
    max_frames: int = Field(
        2_621_440, ge=1024, description="Maximum number of training frames; the paper's is 80 chunks of 32,768."
    )


Trunk = Literal["impala", "compact"]
"""Keys of :data:`TRUNKS`."""


class ModelConfig(Section):
    """Sizes of the networks (paper, appendix A)."""

    frame_size: Literal[16, 32, 64] = Field(
        64, description="Pixels per side that stage 1 sees; below 64, frames are averaged."
    )
    policy_size: Literal[16, 32, 64] = Field(
        default=64, description="Pixels per side that the policy and the baselines see."
    )
    idm_scale: int = Field(
        4, ge=1, le=16, description="Channel multiplier k of the inverse dynamics model's IMPALA trunk."
    )
    world_model_base: int = Field(24, ge=4, le=128, multiple_of=2, description="Channels b of the U-Net's outer level.")
    policy_scale: int = Field(
        4, ge=1, le=16, description="Channel multiplier k of the trunk of the policy and the baselines."
    )
    policy_trunk: Trunk = Field(
        default="impala",
        description="Trunk of the policy and the baselines: impala, the paper's, or compact, which costs less and "
        "normalizes its features.",
    )
    quantizer: Annotated[SerializeAsAny[QuantizerConfig], _variant(QUANTIZERS, "vq")] = Field(
        default_factory=lambda: QUANTIZERS.get("vq").model_validate({}), description="The quantizer of latent actions."
    )
    motion_init: bool = Field(
        default=False,
        description="Start the IDM on frame differences and the world model on copying o_t; false: the paper's.",
    )


class ScheduledConfig(Section):
    """A training on batches whose learning rate warms up linearly and then decays linearly."""

    steps: int
    batch_size: int
    lr: float
    lr_start: float
    lr_end: float
    warmup: int
    eval_every: int
    weight_decay: float = Field(
        0.01,
        ge=0,
        le=10,
        description="Fraction, times the learning rate, by which weights shrink in an update.",
    )
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="adamw (the paper's), or muon: Muon for hidden layers and AdamW for the rest.",
    )

    def of_steps(self, steps: int) -> Self:
        """This schedule, shortened to so many steps, or lengthened."""
        return self.model_copy(update={"steps": steps, "warmup": self.warmup * steps // self.steps})

    def learning_rate(self, step: int) -> float:
        """From ``lr_start`` to ``lr`` over ``warmup`` steps, then to ``lr_end`` at ``steps``."""
        if step < self.warmup:
            return self.lr_start + (self.lr - self.lr_start) * step / self.warmup
        return self.lr + (self.lr_end - self.lr) * (step - self.warmup) / max(1, self.steps - self.warmup)


class Stage1Config(ScheduledConfig):
    """Inverse dynamics model and world model, trained jointly (paper, section 4.1)."""

    steps: int = Field(50_000, ge=1, description="Training steps.")
    batch_size: int = Field(128, ge=2, description="Windows per step.")
    lr: float = Field(3e-4, gt=0, lt=1, description="Peak learning rate.")
    lr_start: float = Field(3e-5, ge=0, lt=1, description="Learning rate at step 0, from which it warms up linearly.")
    lr_end: float = Field(3e-6, ge=0, lt=1, description="Learning rate at the end, to which it decays linearly.")
    warmup: int = Field(50, ge=0, description="Steps of the warm-up.")
    grad_norm: float = Field(2.0, gt=0, description="Norm at which the gradient is clipped.")
    error_focus: float = Field(
        0.0, ge=0, le=4, description="Power of the local prediction error by which pixels are weighted; 0: the paper's."
    )
    eval_every: int = Field(500, ge=1, description="Steps between measurements on held-out data.")
    probe_pairs: int = Field(
        65_536, ge=64, description="Maximum number of labelled pairs to train the probe, and as many to test it."
    )
    probe_epochs: int = Field(3, ge=1, description="Epochs of the probe's training.")


class Stage2Config(ScheduledConfig):
    """Latent behaviour cloning (paper, section 4.2)."""

    steps: int = Field(60_000, ge=1, description="Training steps.")
    batch_size: int = Field(128, ge=2, description="Frames per step.")
    lr: float = Field(2e-4, gt=0, lt=1, description="Peak learning rate.")
    lr_start: float = Field(2e-6, ge=0, lt=1, description="Learning rate at step 0, from which it warms up linearly.")
    lr_end: float = Field(0.0, ge=0, lt=1, description="Learning rate at the end, to which it decays linearly.")
    warmup: int = Field(1_000, ge=0, description="Steps of the warm-up.")
    target: Annotated[SerializeAsAny[PolicyTargetConfig], _variant(POLICY_TARGETS, "latent")] = Field(
        default_factory=lambda: POLICY_TARGETS.get("latent").model_validate({}), description="What the policy predicts."
    )
    lookahead: int = Field(
        0,
        ge=0,
        le=64,
        description="Predict the targets of so many next frames too, as an auxiliary loss of this stage and of clones; "
        "0 is the paper's.",
    )
    eval_every: int = Field(1_000, ge=1, description="Steps between measurements on held-out data.")


class DecoderConfig(Section):
    """Training of the MLP decoder from latent to true actions (paper, section 4.3)."""

    batch_size: int = Field(512, ge=1, description="Pairs per step; Adam.")
    lr: float = Field(1e-3, gt=0, lt=1, description="Learning rate.")
    label_smoothing: float = Field(0.05, ge=0, lt=1, description="Label smoothing of the cross-entropy.")


class OfflineConfig(Section):
    """Decoding from a few labelled frames (paper, section 5.2)."""

    labels: tuple[int, ...] = Field(
        (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192),
        min_length=1,
        description="Numbers of labelled frames, one decoder each.",
    )
    steps: int = Field(
        1_000,
        ge=1,
        description="Training steps of each MLP decoder, and of the baselines that learn from the labels alone.",
    )
    decoder: Literal["mlp", "linear"] = Field(
        "mlp",
        description="Decoder that offline decoding and relabelling train on a few labels: mlp, the paper's, or linear, "
        "regularized logistic regression. Online, it is always the MLP.",
    )
    l2: float = Field(
        10.0,
        gt=0,
        description="Weight of the squared norm of the linear decoder, on standardized latent actions, beside the "
        "summed cross-entropy of the labels.",
    )

    @field_validator("labels", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _positive(self) -> "OfflineConfig":
        if min(self.labels) < 1:
            raise ValueError("every number of labelled frames must be at least 1")
        return self


class RelabelConfig(Section):
    """Labelling all frames, by their latent actions or from random play, then cloning the labels (arXiv:2602.02762)."""

    steps: int = Field(60_000, ge=1, description="Training steps of each clone.")
    lr: float = Field(2e-4, gt=0, lt=1, description="Peak learning rate of a clone; else it is trained as in stage 2.")
    warm_start: bool = Field(
        default=False, description="Start from the trunk of the latent policy; false: from random weights, as LAPO+."
    )
    env_steps: int = Field(
        32_768,
        ge=1,
        description="Online variant: environment steps of random play, whose actions are its labels, out of "
        "online.steps. Its frames are kept in memory.",
    )
    idm_steps: int = Field(
        2_000, ge=1, description="Online variant: updates of each inverse dynamics model on random play, as in stage 1."
    )
    idm_network: Trunk = Field(
        "impala",
        description="Online variant: trunk of the one that is trained from random weights beside stage1's, of the "
        "policy's scale and on frames of its size: impala, the paper's, or compact.",
    )
    play_temperature: float = Field(
        1.0,
        ge=0.01,
        description="Divides the logits of these models' mean for the clone's targets; below 1, they are sharper.",
    )


class Ramp(Section):
    """A learning rate over environment steps: 0 until ``start``, linear to ``lr`` at ``peak`` and to 0 at the end."""

    start: int = Field(ge=0, description="Environment steps until which the learning rate is 0.")
    peak: int = Field(ge=0, description="Environment steps at which the learning rate is highest.")
    lr: float = Field(ge=0, lt=1, description="The highest learning rate.")

    @model_validator(mode="after")
    def _ascending(self) -> "Ramp":
        if self.peak < self.start:
            raise ValueError(f"peak ({self.peak}) must not come before start ({self.start})")
        return self

    def stretched(self, factor: float) -> Self:
        """This ramp over ``factor`` times as many environment steps."""
        return self.model_copy(update={"start": int(self.start * factor), "peak": int(self.peak * factor)})

    def at(self, step: int, end: int) -> float:
        """The learning rate after ``step`` environment steps of ``end``."""
        if step < self.start:
            return 0.0
        if step < self.peak:
            return self.lr * (step - self.start) / (self.peak - self.start)
        return self.lr * max(0.0, (end - step) / max(1, end - self.peak))


class PPOConfig(Section):
    """Proximal policy optimization (paper, appendix A)."""

    num_envs: int = Field(64, ge=1, description="Parallel environments.")
    num_steps: int = Field(64, ge=1, description="Steps of each environment per rollout.")
    minibatches: int = Field(8, ge=1, description="Minibatches per epoch.")
    epochs: int = Field(3, ge=1, description="Passes over each rollout.")
    clip: float = Field(0.2, gt=0, description="Clipping of the policy ratio and of the value.")
    value_coef: float = Field(0.5, ge=0, description="Weight of the value loss.")
    entropy_coef: float = Field(0.0025, ge=0, description="Weight of the entropy bonus.")
    grad_norm: float = Field(0.5, gt=0, description="Norm at which the gradient is clipped.")
    gamma: float = Field(0.999, gt=0, le=1, description="Discount.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of the generalized advantage estimate.")
    env_groups: int = Field(
        2, ge=1, le=8, description="Parts of the environments that step in turn, one while the network serves another."
    )

    compile: bool = Field(
        default=False, description="Compile what is trained (torch.compile): meant for GPUs, slow to start."
    )

    @model_validator(mode="after")
    def _divisible(self) -> "PPOConfig":
        if self.num_envs % self.env_groups:
            raise ValueError(f"num_envs ({self.num_envs}) must be a multiple of env_groups ({self.env_groups})")
        if self.num_envs * self.num_steps < 2 * self.minibatches:
            raise ValueError(
                f"minibatches ({self.minibatches}) leaves fewer than two of the rollout's "
                f"{self.num_envs * self.num_steps} steps for each"
            )
        return self


class ReinforcementConfig(Section):
    """A training by PPO."""

    steps: int = Field(ge=1, description="Environment steps, rounded up to whole rollouts.")
    ppo: PPOConfig = PPOConfig()


class ExpertConfig(ReinforcementConfig):
    """An expert to record, trained from scratch (Cobbe et al., 2020, easy mode)."""

    steps: int = Field(25_000_000, ge=1, description="Environment steps, rounded up to whole rollouts.")
    ppo: PPOConfig = PPOConfig(num_steps=256, entropy_coef=0.01)
    lr: float = Field(5e-4, gt=0, lt=1, description="Learning rate; Adam.")
    scale: int = Field(4, ge=1, le=16, description="Channel multiplier k of its IMPALA trunk.")
    size: Literal[16, 32, 64] = Field(64, description="Pixels per side that it sees; below 64, frames are averaged.")
    snapshot_every: int = Field(
        5_000_000, ge=1, description="Environment steps between weights that are kept, to record mixtures of skill."
    )


class OnlineConfig(ReinforcementConfig):
    """Decoding by reinforcement learning, and its baselines at the same number of steps (paper, section 5.1)."""

    steps: int = Field(4_000_000, ge=1, description="Environment steps, rounded up to whole rollouts.")
    action_head: Ramp = Ramp(start=35_000, peak=50_000, lr=1e-2 / 4)
    value_head: Ramp = Ramp(start=25_000, peak=50_000, lr=1e-2 / 4)
    hidden: Ramp = Ramp(start=50_000, peak=200_000, lr=1e-2 / 10)
    scratch: Ramp = Ramp(start=0, peak=0, lr=5e-4)
    decoder_from: int = Field(10_000, ge=0, description="Environment steps after which the decoder is trained.")
    decoder_dense_until: int = Field(
        50_000, ge=0, description="Environment steps until which the decoder is trained at every update."
    )
    decoder_every: int = Field(20, ge=1, description="Updates between two trainings of the decoder after that.")
    decoder_until: int = Field(
        400_000, ge=0, description="Environment steps after which the decoder is no longer trained."
    )
    decoder_epochs: int = Field(3, ge=1, description="Passes over all labelled pairs each time.")

    def of_steps(self, steps: int) -> Self:
        """This training of an agent's last layers, shortened to so many environment steps, or lengthened."""
        factor = steps / self.steps
        ramps = {name: getattr(self, name).stretched(factor) for name in ("action_head", "value_head", "hidden")}
        return self.model_copy(update={"steps": steps, **ramps})


class EvaluationConfig(Section):
    """How policies are evaluated."""

    episodes: int = Field(256, ge=2, description="Episodes per policy.")
    num_envs: int = Field(128, ge=1, description="Maximum number of parallel environments.")
    max_episode_steps: int = Field(
        100_000, ge=1, description="Environment steps after which an episode that has not ended is an error."
    )
    curve_points: int = Field(
        8, ge=0, description="Evaluations during a training by PPO, after the one at its start; 0: none at all."
    )
    curve_episodes: int = Field(64, ge=2, description="Episodes of each of these.")


class Config(Section):
    """Everything a run depends on besides data, seed and device."""

    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="auto, fp32 or bf16, which autocasts convolutions; auto: where the hardware is fast at it.",
    )
    checkpoint_seconds: float = Field(60.0, ge=0, description="Seconds between checkpoints of a training stage.")
    extra_stages: tuple[str, ...] = Field(
        default=(),
        description="Stages that run-all adds to the paper's, with those that they need; for example "
        "[relabel,online-relabel].",
    )
    data: DataConfig = DataConfig()
    # Not built when this module is imported: the modules of quantizers and policy targets import this one.
    model: ModelConfig = Field(default_factory=ModelConfig)
    stage1: Stage1Config = Stage1Config()
    stage2: Stage2Config = Field(default_factory=Stage2Config)
    decoder: DecoderConfig = DecoderConfig()
    offline: OfflineConfig = OfflineConfig()
    relabel: RelabelConfig = RelabelConfig()
    online: OnlineConfig = OnlineConfig()
    expert: ExpertConfig = ExpertConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    plugins: dict[str, SerializeAsAny[Section]] = Field(
        default_factory=dict, validate_default=True, description="Sections of the stages that plugins add."
    )

    @field_validator("extra_stages", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value

    @field_validator("plugins", mode="plain")
    @classmethod
    def _known_plugins(cls, value: Any) -> dict[str, Section]:
        if not isinstance(value, dict):
            raise ValueError("a mapping from the names of stages to their sections is expected")
        classes = PLUGIN_SECTIONS | {stage.name: stage.config for stage in _INSTALLED_STAGES.values() if stage.config}
        unknown = sorted(set(map(str, value)) - set(classes))
        if unknown:
            raise ValueError(f"no loaded plugin adds a stage '{unknown[0]}' with settings: load it with --plugin FILE")
        sections: dict[str, Section] = {}
        for name, section in classes.items():
            # As the value of a mapping, so that the key of an error begins with the stage.
            adapter: TypeAdapter[dict[str, Section]] = TypeAdapter(dict[str, section])  # type: ignore[valid-type]
            sections |= adapter.validate_python({name: value.get(name, {})})
        return sections


def section_of(config: dict[str, Any], name: str) -> Any:
    """The section of a dumped configuration with that dotted name, such as ``stage1`` or ``plugins.mine``."""
    for part in name.split("."):
        config = config[part]
    return config
