"""Makes sglang's warm-up run with several batch sizes and records what reaches the model.

On a GPU sglang makes this run itself, with the size of the request pool, to tune kernels.
"""

from __future__ import annotations

from typing import Any

from rig.probes import probe


def install() -> None:
    probe.register("dummy_run", _examine)


def _examine(model_runner: Any) -> dict[str, Any]:
    pool = model_runner.req_to_token_pool.size
    return {
        "request_pool_size": pool,
        "runs": [_run(model_runner, asked_for) for asked_for in sorted({1, 2, 3, pool})],
    }


def _run(model_runner: Any, asked_for: int) -> dict[str, Any]:
    record: dict[str, Any] = {"asked_for": asked_for, "forward": None, "error": None}
    model = model_runner.model
    forward = model.forward

    def recording_forward(input_ids: Any, positions: Any, batch: Any, **kwargs: Any) -> Any:
        record["forward"] = {"requests": batch.batch_size, "tokens": len(input_ids)}
        return forward(input_ids, positions, batch, **kwargs)

    model.forward = recording_forward
    try:
        model_runner._dummy_run(batch_size=asked_for)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
    finally:
        del model.forward
    return record
