"""What Kolmo raises: one family for wrong input, one for results it would not stand behind."""

from __future__ import annotations

#: exit codes of the command line: a claim does not hold, bad input or a refusal, interrupted
EXIT_CLAIM, EXIT_ERROR, EXIT_INTERRUPTED = 1, 2, 130


class KolmoError(Exception):
    """Base class: the message is one line that names the culprit and the remedy."""


class InputError(KolmoError, ValueError):
    """A file, option, array or weight is not what was expected."""


class MissingBackendError(InputError):
    """A finite-element backend or device asked for by name is not installed."""


class InfeasibleError(KolmoError, ArithmeticError):
    """The discretisation cannot resolve these weights.

    Optimisers treat it as a point outside the admissible set and backtrack; everyone else
    reads the reason and the remedy. `layer` is the offending layer, where there is one.
    """

    def __init__(self, message: str, layer: int | None = None) -> None:
        super().__init__(message)
        self.layer = layer


class MaximumPrincipleError(InfeasibleError):
    """The value function left [min Phi, max Phi] by more than the tolerance."""


class StiffnessError(InfeasibleError):
    """The Courant number of a layer is beyond the propagator: too many substeps, or followed by nothing."""


class PecletError(InfeasibleError):
    """The value function varies from node to node where the mesh Peclet number lets nothing damp it."""


class StepError(InfeasibleError):
    """A layer folds the space that its data pass: no modified equation describes it."""


class ConditionError(InfeasibleError):
    """The matrix of an implicit step is too badly conditioned for its solves to mean anything."""


class NonFiniteError(InfeasibleError):
    """A coefficient, state or gradient is not finite."""


class ResolutionError(InfeasibleError):
    """The mesh does not resolve the features of the network."""


class ModelError(InfeasibleError):
    """The modified equation does not describe the chain: steps too large for its order."""


class DomainError(InfeasibleError):
    """Paths leave the computational box."""


class AuditError(KolmoError):
    """The Kolmogorov equation and the chain differ by more than both can explain."""
