"""The section `execution.tracking`: TensorBoard, Weights & Biases, MLflow."""

import re
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator

from boomspec.core.types import Strict, about
from boomspec.spec.validate import FieldError

_QUERIED = re.compile(r"([\w.-]+)=")  # an ODBC string in a query has names of its own
_SECRET = re.compile(r"token|secret|passw|pwd|credential|(api|access)[_-]?key|^(key|user(name)?|uid|auth|sig)$", re.I)


class WandbSpec(Strict):
    """Weights & Biases. The key is read from WANDB_API_KEY alone."""

    project: str = about("The project.", ["boomerang"], min_length=1)
    entity: str | None = about("The team or person. Default: the key's.", ["my-team"], default=None, min_length=1)


class MlflowSpec(Strict):
    """MLflow. User names, passwords and tokens are read from MLflow's own variables alone."""

    uri: str = Field(examples=["http://mlflow.example:5000", "sqlite:////shared/mlflow.db"], min_length=1)
    """The tracking server, or a database."""
    experiment: str | None = Field(None, examples=["boomerang"], min_length=1)
    """The experiment. Default: the spec's name."""

    @field_validator("uri")
    @classmethod
    def _whole_and_without_a_password(cls, uri: str) -> str:
        if "://" not in uri:
            raise FieldError(f"'{uri}' has no scheme", hint="such as http://..., sqlite:////... or file:///...")
        if "@" in urlsplit(uri).netloc:
            raise FieldError(
                "must hold no user name or password: a spec is copied into the store",
                hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the run starts",
            )
        for name in _QUERIED.findall(unquote(urlsplit(uri).query)):
            if _SECRET.search(name):
                raise FieldError(
                    f"must hold no '{name}': a spec is copied into the store",
                    hint="set MLFLOW_TRACKING_TOKEN, or the variables of the database's driver, where the run starts",
                )
        return uri


class TrackingSpec(Strict):
    """Where the numbers of a run can be watched while it runs."""

    tensorboard: bool = about("Write TensorBoard's files into the run's folder.", [False], default=True)
    wandb: WandbSpec | None = about("Log to Weights & Biases, too.", [{"project": "boomerang"}], default=None)
    mlflow: MlflowSpec | None = about("Log to MLflow, too.", [{"uri": "http://mlflow.example:5000"}], default=None)
