"""From a recipe to a run folder, and back to a model that evaluates and predicts.

A run folder holds `recipe.toml`, `record.json`, `metrics.parquet`, `model.safetensors` and, while
it is under way, `checkpoint/`. The record is written last: a folder without one is not finished.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rankloom.batch import Batch
from rankloom.config import to_toml
from rankloom.data.encode import Encoder
from rankloom.data.frames import like, to_polars
from rankloom.data.loader import Loader
from rankloom.data.store import Dataset
from rankloom.evaluation.cost import measure_cost
from rankloom.evaluation.protocol import Evaluation, EvaluationConfig, Predictions
from rankloom.evaluation.protocol import evaluate as evaluate_predictions
from rankloom.evaluation.protocol import predict as predict_batches
from rankloom.runs.record import Record, read_record, write_record
from rankloom.training.loop import Progress, TrainingResult
from rankloom.training.loop import train as run_loop
from rankloom.training.recipe import Recipe, load_recipe
