"""The paper's ablation (section 6): stages once more, without a quantizer, beside those of the run."""

from dataclasses import replace

from lapo_cli.core.config import QUANTIZERS, Config
from lapo_cli.core.training.context import Context
from lapo_cli.core.training.stage import Stage

NO_QUANTIZER = "-no-quantizer"
_KIND = "none"


def without_quantizer(stage: Stage) -> Stage:
    """This stage without a quantizer, on latent actions of the same size: one of the baselines."""

    def applicable(ctx: Context) -> str | None:
        if ctx.config.model.quantizer.kind == _KIND:
            return "the run has no quantizer"
        return stage.applicable(ctx)

    return replace(
        stage,
        name=stage.name + NO_QUANTIZER,
        label=f"{stage.label}, no quantizer",
        command=Stage.command,
        requires=tuple(required + NO_QUANTIZER for required in stage.requires),
        applicable=applicable,
        configure=_configure,
        variant=NO_QUANTIZER,
        in_chain="baselines",
        order=50 + stage.order // 10,  # After those of the run, in their order.
    )


def _configure(config: Config) -> Config:
    quantizer = QUANTIZERS.get(_KIND).model_validate({"size": config.model.quantizer.la_dim})
    return config.model_copy(update={"model": config.model.model_copy(update={"quantizer": quantizer})})
