"""A web service: `uvicorn service:app`, then `curl --data-binary @photo.jpg localhost:8000/label?level=0`.

The environment variable HIERCLASS_MODEL names a model folder; without it the bundled model answers.
"""

import asyncio
import os
import threading
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request

import hierclass
from hierclass.processors import num_threads

MOST_BYTES, MOST_SECONDS = 20 << 20, 60

classifier = hierclass.load(os.environ.get("HIERCLASS_MODEL"), device="cpu")
busy = threading.Semaphore(num_threads())  # more photographs at a time would need memory, and be no faster
app = FastAPI(title="hierclass")


async def photograph(request: Request) -> bytes:
    """Return the body of a program's request; read no more of it than is allowed, and no longer."""
    if "origin" in request.headers:  # browsers send it: a website would use whoever visits it to ask
        raise HTTPException(403, "this service answers programs, not websites")
    data = bytearray()
    try:
        async with asyncio.timeout(MOST_SECONDS):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MOST_BYTES:
                    raise HTTPException(413, f"a photograph may have {MOST_BYTES >> 20} MiB")
    except TimeoutError:
        raise HTTPException(408, f"a photograph may take {MOST_SECONDS} seconds to arrive") from None
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
