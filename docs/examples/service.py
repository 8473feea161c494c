"""A web service: `uvicorn service:app`, then `curl --data-binary @photo.jpg localhost:8000/label?level=0`.

The environment variable HIERCLASS_MODEL names a model folder; without it the bundled model answers.
"""

import os
import threading
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request

import hierclass
from hierclass.processors import num_cores

MOST_BYTES = 20 << 20

classifier = hierclass.load(os.environ.get("HIERCLASS_MODEL"), device="cpu")
busy = threading.Semaphore(num_cores())  # more photographs at a time would need memory, and be no faster
app = FastAPI(title="hierclass")


async def photograph(request: Request) -> bytes:
    """Return the body of a request, and read no more of it than is allowed."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MOST_BYTES:
            raise HTTPException(413, f"a photograph may have {MOST_BYTES >> 20} MiB")
    return bytes(data)


@app.post("/label")
def label(data: Annotated[bytes, Depends(photograph)], level: int | None = None) -> dict[str, Any]:
    """Label the photograph that is the body of the request; the finest level answers if none is given."""
    try:
        with busy:
            return classifier.predict(data, level).to_dict()
    except (hierclass.ImageError, hierclass.LevelError) as error:
        raise HTTPException(422, str(error)) from None


@app.get("/health")
def health() -> dict[str, int]:
    """Say that the model is loaded."""
    return {"levels": len(classifier.levels)}
