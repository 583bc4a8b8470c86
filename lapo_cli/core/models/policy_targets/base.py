"""What the latent policy predicts, how far off it is, and which latent action a prediction stands for."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class PolicyTarget(nn.Module, ABC):
    """A form of the latent action that a policy can be trained to predict.

    Args:
        num_outputs: numbers that the policy predicts for a frame.
        la_dim: size of a latent action.
    """

    def __init__(self, num_outputs: int, la_dim: int) -> None:
        super().__init__()
        self.num_outputs, self.la_dim = num_outputs, la_dim

    def fit(self, z: Tensor) -> None:
        """Take from latent actions (M, la_dim) that are to be predicted what is needed of them, before training.

        It is saved with the policy if it is in buffers.
        """

    @abstractmethod
    def loss(self, predicted: Tensor, z: Tensor) -> Tensor:
        """The training loss, a scalar, of predictions (B, num_outputs) for latent actions z (B, la_dim)."""

    @abstractmethod
    def latent_action(self, predicted: Tensor) -> Tensor:
        """The latent actions (B, la_dim) that predictions (B, num_outputs) stand for; the decoder reads them."""
