"""A client of ScaleSim's server, with the names of the engine in process. Needs no torch.

    from scalesim.client import Client

    with Client("http://127.0.0.1:8000") as client:
        ada = client.agent("ada")
        print(ada.chat("Good morning!").content)
        client.expect({"ada": 3, "bob": 1})
        client.tick()

``AsyncClient`` has the same methods as coroutines. Errors are those of ``scalesim.errors``.
"""

from __future__ import annotations

from scalesim.client.aio import AsyncClient, AsyncRemoteAgent, AsyncRemoteStream
from scalesim.client.replies import (
    RemoteChoice,
    RemotePiece,
    RemoteReply,
    RemoteToolCall,
    RemoteUsage,
)
from scalesim.client.sync import Client, RemoteAgent, RemoteStream

__all__ = [
    "AsyncClient",
    "AsyncRemoteAgent",
    "AsyncRemoteStream",
    "Client",
    "RemoteAgent",
    "RemoteChoice",
    "RemotePiece",
    "RemoteReply",
    "RemoteStream",
    "RemoteToolCall",
    "RemoteUsage",
]
