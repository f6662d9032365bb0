"""The section of the spec language about watching a run: TensorBoard's files, Weights & Biases, MLflow."""

import re
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator

from boomspec.core.types import Strict
from boomspec.spec.validate import FieldError

_QUERIED = re.compile(r"([\w.-]+)=")  # an ODBC string in a query has names of its own
_SECRET = re.compile(r"token|secret|passw|pwd|credential|(api|access)[_-]?key|^(key|user(name)?|uid|auth|sig)$", re.I)


class WandbSpec(Strict):
    """Weights & Biases. The key is read from WANDB_API_KEY alone."""

    project: Annotated[str, Field(min_length=1, description="The project.", examples=["boomerang"])]
    entity: Annotated[
        str | None, Field(min_length=1, description="The team or person. Default: the key's.", examples=["my-team"])
    ] = None


class MlflowSpec(Strict):
    """MLflow. User names, passwords and tokens are read from MLflow's own variables alone."""

    uri: Annotated[
        str,
        Field(
            min_length=1,
            description="The tracking server, or a database.",
            examples=["http://mlflow.example:5000", "sqlite:////shared/mlflow.db"],
        ),
    ]
    experiment: Annotated[
        str | None,
        Field(min_length=1, description="The experiment. Default: the spec's name.", examples=["boomerang"]),
    ] = None

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

    tensorboard: Annotated[
        bool, Field(description="Write TensorBoard's files into the run's folder.", examples=[False])
    ] = True
    wandb: Annotated[
        WandbSpec | None,
        Field(description="Log to Weights & Biases, too.", examples=[{"project": "boomerang"}]),
    ] = None
    mlflow: Annotated[
        MlflowSpec | None,
        Field(description="Log to MLflow, too.", examples=[{"uri": "http://mlflow.example:5000"}]),
    ] = None
