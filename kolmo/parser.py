"""What can be said to `kolmo`: commands and their options."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from kolmo import __version__
from kolmo.errors import InputError

#: what `add_subparsers` gives
_Commands = Any


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def build() -> Parser:
    """The parser of the command line."""
    parser = Parser(
        prog="kolmo",
        description="Noise-injected training of residual networks as control of the Kolmogorov equation.",
        epilog="exit codes: 0 done, and every claim or check holds; 1 one does not; 2 bad input, or a "
        "refusal (one line says why); 130 interrupted (what was done is kept). kolmo COMMAND --help has an "
        "example.",
    )
    parser.add_argument("--version", action="version", version=f"kolmo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _results(commands)
    _checks(commands)
    _outside(commands)
    for command in commands.choices.values():
        command.add_argument(
            "--profile", action="store_true", help="where the time went, on standard error at the end"
        )
    return parser


def _results(commands: _Commands) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="the main job: train by PDE control, stochastically and without noise, and cross-check",
        description="Train one network three ways; cross-check values four ways and gradients two ways.",
        epilog="example: kolmo reproduce --config overfitting --seed 3 --out runs/overfitting",
        allow_abbrev=False,
    )
    reproduce.add_argument("--config", help="TOML file, or default (the default), overfitting")
    _run_options(reproduce)
    reproduce.add_argument("--json", action="store_true", help="print the claims as one JSON object")

    evaluate = commands.add_parser(
        "evaluate",
        help="J of a network on disk by several estimators",
        description="Evaluate a case directory (problem.toml, points.csv, weights.npz or .safetensors).",
        epilog="example: kolmo evaluate runs/reproduce/control --estimator pde,chain --json",
        allow_abbrev=False,
    )
    evaluate.add_argument("case", metavar="CASE_DIR")
    _estimator_options(evaluate, "pde,chain")
    evaluate.set_defaults(estimator=None)  # pde,chain, or whatever meets --tolerance
    evaluate.add_argument("--error", action="store_true", help="the error budget of each estimate, by source")
    evaluate.add_argument(
        "--at", action="append", metavar="X1,..,XD", help="u(x, 0) at a point too (as often as you like)"
    )
    evaluate.add_argument(
        "--tolerance", type=float, help="total error wanted on J: estimator, mesh and box are chosen for it"
    )
    evaluate.add_argument("--seconds", type=float, help="that --tolerance may take (default 600)")
    evaluate.add_argument("--memory", type=float, help="GiB that --tolerance may store (default 8)")
    evaluate.add_argument("--gradient", action="store_true", help="write each estimate's gradient as npz")
    evaluate.add_argument("--out", help="folder for gradients (default: a fresh temporary one)")
    evaluate.add_argument("--overwrite", action="store_true", help="reuse an output folder that is not empty")
    evaluate.add_argument("--csv", metavar="FILE", help="write all numbers as table,row,column,value")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    compare = commands.add_parser(
        "compare",
        help="the four estimators of J side by side, with z-scores and a verdict",
        description="Reach J four ways for each case; exit code 1 where they differ beyond their errors.",
        epilog="example: kolmo compare runs/reproduce/control runs/reproduce/stochastic",
        allow_abbrev=False,
    )
    compare.add_argument("cases", metavar="CASE_DIR", nargs="+")
    _estimator_options(compare, "pde,sde,exact,chain")
    compare.add_argument("--out", help="folder for comparison.json (default: none)")
    compare.add_argument("--overwrite", action="store_true", help="reuse an output folder that is not empty")
    compare.add_argument("--csv", metavar="FILE", help="write all numbers as table,row,column,value")
    compare.add_argument("--quiet", action="store_true", help="no progress")
    compare.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    compare.set_defaults(gradient=False)

    experiment = commands.add_parser(
        "experiment",
        help="one reproducible result, its claims checked",
        epilog="example: kolmo experiment overfitting --quick",
        allow_abbrev=False,
    )
    experiment.add_argument("name", nargs="?", metavar="NAME")
    experiment.add_argument("--list", action="store_true", help="name all experiments")
    experiment.add_argument("--config", help="TOML file in place of the experiment's own")
    _run_options(experiment)
    experiment.add_argument("--json", action="store_true", help="print the claims as one JSON object")


def _checks(commands: _Commands) -> None:
    verify = commands.add_parser(
        "verify",
        help="the numerical self-check on this machine, in under 2 minutes",
        description="Check closed forms, orders, gradients, duality, coverage; exit code 1 where one fails.",
        epilog="example: kolmo verify --backend skfem --json",
        allow_abbrev=False,
    )
    verify.add_argument("--backend", default="auto", help="finite elements: auto, box, dolfinx or skfem")
    verify.add_argument("--quiet", action="store_true", help="no progress")
    verify.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    bench = commands.add_parser(
        "bench",
        help="what everything costs beside its peers, against the targets, in under 8 minutes",
        description="Time Kolmo beside dolfinx, py-pde, torchsde, PyTorch; exit code 1 at a missed target.",
        epilog="example: kolmo bench --only chain_over_torch,gradient_over_value --out chain.json",
        allow_abbrev=False,
    )
    bench.add_argument("--quick", action="store_true", help="smaller and fewer repetitions, about a minute")
    bench.add_argument("--only", metavar="KEY,...", help="these ratios only (written where --out says)")
    bench.add_argument("--out", metavar="FILE", help="for the results (default benchmarks/results.json)")
    bench.add_argument("--quiet", action="store_true", help="no progress")
    bench.add_argument("--json", action="store_true", help="print one JSON object and nothing else")

    config = commands.add_parser(
        "config",
        help="the defaults of a configuration, its schema, or the check of a file",
        description="Print a complete configuration, its JSON Schema, or whether a TOML file is right.",
        epilog="example: kolmo config --defaults > mine.toml; kolmo config --check mine.toml",
        allow_abbrev=False,
    )
    config.add_argument(
        "--defaults", nargs="?", const="default", metavar="NAME", help="as TOML, of a shipped one by name"
    )
    config.add_argument("--schema", action="store_const", const=True, help="the JSON Schema of all tables")
    config.add_argument("--check", metavar="FILE", help="exit code 2 and one line where it is wrong")
    config.add_argument(
        "--json", action="store_true", help="print defaults or a checked file's settings as JSON"
    )

    doctor = commands.add_parser(
        "doctor",
        help="what was found on this machine and what is missing",
        epilog="example: kolmo doctor --json",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object")


def _outside(commands: _Commands) -> None:
    export = commands.add_parser(
        "export",
        help="the network of a case for those without Kolmo: a torch state dict with its script, or ONNX",
        description="Write a case's network without noise, x -> logit of class 1, in a format others read.",
        epilog="example: kolmo export runs/reproduce/control --format onnx --out deployed",
        allow_abbrev=False,
    )
    export.add_argument("case", metavar="CASE_DIR")
    export.add_argument("--format", default="torch", help="torch (network.pt, network.py; default) or onnx")
    export.add_argument("--dtype", help="float64 (default of torch) or float32 (default of onnx)")
    _output_options(export)

    fields = commands.add_parser(
        "fields",
        help="value function, density and penalty over time, as files for ParaView",
        description="Solve a case on a mesh that resolves it and write u, rho, drift and penalty over time.",
        epilog="example: kolmo fields runs/reproduce/control --times 0,0.5,1 --out paraview",
        allow_abbrev=False,
    )
    fields.add_argument("case", metavar="CASE_DIR")
    fields.add_argument("--times", metavar="T1,T2,..", help="the nearest ends of layers (default: all)")
    fields.add_argument(
        "--cells", type=int, help="of the mesh, a direction (default: refined until resolved)"
    )
    fields.add_argument("--order", type=int, default=2, help="order of the modified equation, 1 or 2")
    fields.add_argument("--backend", default="auto", help="auto, box, dolfinx (writes XDMF) or skfem")
    _output_options(fields)

    explore = commands.add_parser(
        "explore",
        help="a local page for teaching: train, move time and noise, watch",
        description="Serve a page on this machine only, at a random port and a secret address, until Ctrl-C.",
        epilog="example: kolmo explore --no-browser --port 8123",
        allow_abbrev=False,
    )
    explore.add_argument("--port", type=int, default=0, help="to listen on (default: any that is free)")
    explore.add_argument(
        "--no-browser", dest="browser", action="store_false", help="print the address, open nothing"
    )

    completion = commands.add_parser(
        "completion",
        help="a script that teaches the shell these commands",
        description="Print the completion of commands, options, experiments and folders for a shell.",
        epilog='example: eval "$(kolmo completion bash)"',
        allow_abbrev=False,
    )
    completion.add_argument("shell", metavar="SHELL", help="bash or zsh (others: what shtab supports)")


def _estimator_options(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--estimator", default=default, help=f"comma-separated: pde, chain, sde, exact (default {default})"
    )
    parser.add_argument("--paths", type=int, default=1_000_000, help="paths of the chain (default 1000000)")
    parser.add_argument("--sde-paths", type=int, default=200_000, help="of the SDE (default 200000)")
    parser.add_argument(
        "--cells", type=int, help="of the mesh, a direction (default: refined until resolved)"
    )
    parser.add_argument("--exact-cells", type=int, help="of exact's grid (default: refined until good)")
    parser.add_argument("--order", type=int, default=2, help="order of the modified equation, 1 or 2")
    parser.add_argument(
        "--rule",
        default="outcomes",
        help="of exact: outcomes, or gauss (Gaussian increments where outcomes are too many)",
    )
    parser.add_argument(
        "--reduce",
        help="variance of the chain: antithetic (of the SDE too), control or both, comma-separated",
    )
    parser.add_argument("--backend", default="auto", help="auto, box, dolfinx or skfem")
    parser.add_argument("--device", default="auto", help="of the samples: auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")


def _output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", required=True, help="output folder")
    parser.add_argument("--overwrite", action="store_true", help="reuse an output folder that is not empty")
    parser.add_argument("--json", action="store_true", help="print what was written as one JSON object")


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", help="finite elements: auto, box, dolfinx or skfem")
    parser.add_argument("--device", help="of the chain: auto, cpu or cuda")
    parser.add_argument("--seed", type=int, help="of data, weights and noise")
    parser.add_argument("--out", help="output folder (default runs/NAME)")
    parser.add_argument("--overwrite", action="store_true", help="reuse an output folder that is not empty")
    parser.add_argument(
        "--resume", metavar="DIR", help="go on with the run in this folder, its settings kept"
    )
    parser.add_argument("--quick", action="store_true", help="a small version, under a minute")
    parser.add_argument("--quiet", action="store_true", help="no progress")
