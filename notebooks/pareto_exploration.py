# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Exploring a Pareto frontier
#
# A run of `autodistil_search` is a folder. This notebook loads one with pandas, looks at its frontier, picks a student
# for a budget and takes it out as a model.
#
# It opens the run named by `AUTODISTIL_RUN`, or `runs/tiny` as `make search` leaves it. If there is none, it makes a
# small one on the toy space `debug` (half a minute, no network).

# %%
# %matplotlib inline
import os
from pathlib import Path

from autodistil_search import SearchConfig, load_run, search

folder = Path(os.environ.get("AUTODISTIL_RUN", "../runs/tiny"))
if not (folder / "summary.json").exists():
    folder = Path("../runs/debug")
    search(SearchConfig(space="debug", steps=20, batch_size=4, eval_blocks=8, baselines="none", out=str(folder)))
run = load_run(folder)
run

# %% [markdown]
# ## What was searched, and what to keep in mind

# %%
for what, how in run.report.conditions:
    print(f"{what}: {how}")
print()
for note in run.report.notes:
    print("note:", note)

# %% [markdown]
# ## The frontier
#
# One row for each subnet that no other scored subnet beats in both objectives, cheapest first. The knee is the balanced
# choice: nearest the ideal point once both objectives are scaled to the frontier's range.

# %%
run.frontier

# %%
run.plot()

# %% [markdown]
# ## A budget
#
# The best subnet that keeps a budget is the last row of the frontier below it.

# %%
budget = run.frontier["flops"].median()
within = run.frontier[run.frontier["flops"] <= budget]
choice = within.loc[within["relation_loss"].idxmin()]
print(f"at most {budget / 1e6:.4g}M FLOPs:")
choice

# %% [markdown]
# ## What makes a subnet good?
#
# The mean loss for each value of each dimension, over all scored subnets. A search visits good subnets more often, so
# this is a description, not an experiment.

# %%
import pandas as pd

pd.concat(
    {
        dimension: run.evaluations.groupby(dimension)["relation_loss"].agg(["mean", "min", "count"])
        for dimension in ["layers", "hidden_size", "mlp_ratio", "heads"]
    },
    names=["dimension", "value"],
).round(4)

# %% [markdown]
# ## How much does cost alone explain?
#
# Rank correlation of the loss with FLOPs and with parameters. A proxy that only repeats the cost would show -1.

# %%
run.evaluations[["relation_loss", "flops", "params"]].corr(method="spearman").round(3)

# %% [markdown]
# ## Beside hand-designed shapes
#
# Measured in the same run, if it had `baselines="measured"`. For each: the cheapest subnet of the frontier that is at
# least as good, and its share of the FLOPs.

# %%
for _, shape in run.baselines.iterrows():
    better = run.frontier[run.frontier["relation_loss"] <= shape["relation_loss"]]
    if better.empty:
        print(
            f"{shape['name']} ({shape['how']}): no subnet of the frontier reaches its loss of {shape['relation_loss']:.3f}"
        )
    else:
        share = better["flops"].min() / shape["flops"]
        print(
            f"{shape['name']} ({shape['how']}): loss {shape['relation_loss']:.3f} reached with {share:.0%} of its FLOPs"
        )

# %% [markdown]
# ## The student as a model
#
# `run.student(row)` extracts a row's subnet: an ordinary Hugging Face model with its own weights.

# %%
student = run.student(choice)
print(f"{student.num_parameters():,} parameters; the table says {choice['params']:,}")
student.config
