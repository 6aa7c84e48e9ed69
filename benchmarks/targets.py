"""What the ratios are held against: all on one core, the default 2-D case unless the key says otherwise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A ratio and what it should be. least: whether it has to be at least `target`, else at most."""

    key: str
    meaning: str
    target: float
    stretch: float
    least: bool = True

    @property
    def bound(self) -> str:
        return f"{'at least' if self.least else 'at most'} {self.target:g}"

    def met(self, ratio: float, bound: float | None = None) -> bool:
        """Whether a measured ratio is on the right side of the target (or of another bound)."""
        bound = self.target if bound is None else bound
        return ratio >= bound if self.least else ratio <= bound

    def verdict(self, ratio: float) -> str:
        """'missed', 'met', or 'stretch' where the harder bound is met too."""
        harder = self.stretch > self.target if self.least else self.stretch < self.target
        if not self.met(ratio):
            return "missed"
        return "stretch" if harder and self.met(ratio, self.stretch) else "met"


TARGETS = {
    target.key: target
    for target in (
        Target(
            "tutorial_value_over_box_gradient",
            "tutorial-style dolfinx, value / value and gradient on the structured box",
            150,
            300,
        ),
        Target(
            "tutorial_value_over_mesh_gradient",
            "tutorial-style dolfinx, value / value and gradient on any mesh (scikit-fem space)",
            25,
            60,
        ),
        Target(
            "tuned_dolfinx_value_over_box_value",
            "dolfinx with one assembly a layer and GMRES + ILU, value / value on the box",
            30,
            60,
        ),
        Target(
            "tutorial_gradient_over_ours_equal_error",
            "tutorial-style dolfinx, gradient / gradient on the box, at equal error of the gradient",
            100,
            200,
        ),
        Target("gradient_over_value", "on the box, value and gradient / value", 3.5, 2.5, least=False),
        Target(
            "mesh_gradient_over_exact_gradient",
            "value and gradient on any mesh / value and gradient by the exact recursion",
            4,
            8,
        ),
        Target("chain_over_torchsde", "paths a second, the chain / torchsde", 25, 50),
        Target("chain_over_torch", "paths a second, the chain / a plain PyTorch loop", 8, 15),
        Target(
            "training_steps_over_torch",
            "steps of stochastic training a second, 320 paths, ours / a plain PyTorch loop",
            15,
            30,
        ),
        Target(
            "stochastic_seconds_over_control_seconds",
            "seconds to the same objective, plain PyTorch on paths / control of the equation",
            1,
            3,
        ),
        Target(
            "gradient_3d_over_tutorial_3d",
            "3-D: tutorial-style dolfinx (GMRES + ILU), value / value and gradient on the box",
            50,
            150,
        ),
    )
}
