"""A backend on FastAPI (port 8002)."""

import os
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.middleware.cors import CORSMiddleware

from gatepost_client.fastapi import Gatepost, SignedIn

gatepost = Gatepost(
    os.environ.get("GATEPOST_URL", "http://127.0.0.1:8000"), os.environ["GATEPOST_SERVICE_TOKEN"], mode="leased"
)
app = FastAPI(lifespan=gatepost.lifespan)
app.add_middleware(CORSMiddleware, allow_origins=["http://127.0.0.1:8001"], allow_headers=["Authorization"])


@app.get("/notes")
async def notes(who: Annotated[SignedIn, Depends(gatepost.signed_in())]) -> dict[str, str]:
    """Whose notes these are."""
    return {"framework": "FastAPI", "notes_of": who.username}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8002")))
