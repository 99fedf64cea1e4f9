"""The settings of a plain network, which most models of this folder have at least one of."""

from collections.abc import Sequence

from pydantic import Field

from rankloom.config import Config
from rankloom.layers.mlp import MLP, ActivationName


class Network(Config):
    """A multi-layer network: a model's only one, whose config extends this, or a part of it."""

    hidden: tuple[int, ...] = (400, 400, 400)
    """Widths of the hidden layers."""
    activation: ActivationName = "relu"
    """Activation of the hidden layers."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of hidden units dropped in training."""
    batch_norm: bool = False
    """Batch-normalise hidden layers before their activation."""

    def build_network(
        self,
        in_features: int,
        *,
        out_features: int | None = None,
        hidden: Sequence[int] | None = None,
    ) -> MLP:
        """The network.

        Args:
            in_features: width of its input.
            out_features: width of a final linear layer; None: the last hidden layer is the output.
            hidden: widths in place of the settings' own, for a second network of the same kind.
        """
        return MLP(
            in_features,
            self.hidden if hidden is None else hidden,
            out_features=out_features,
            activation=self.activation,
            dropout=self.dropout,
            batch_norm=self.batch_norm,
        )
