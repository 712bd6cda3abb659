"""Buffers for other processes, without a copy: ``serve`` where they are allocated, ``connect`` elsewhere.

producer   buf ──► Service.share, hand_over, Sender.send ──► ledger: who holds what
                       │ slab's file, once (SCM_RIGHTS)            ▲ releases, in batches
consumer               ▼                                           │
           Client ──► slab mapped read-only ──► Claim.view ──► Claim.release, or the process dies

_descriptor  _errors   what passes between processes, and what goes wrong
_wire  _ledger         messages; who holds what: no I/O
_sockets               Unix sockets of one user
_places                where buffers lie
_peer  _service        the producer's side
_channel               frames for whoever listens
_claim  _link          what a client holds, and its end of the connection
_client                what a consumer opens
"""

from ._channel import Sender as Sender
from ._claim import Claim as Claim
from ._client import BlockingClient as BlockingClient
from ._client import BlockingReceiver as BlockingReceiver
from ._client import Client as Client
from ._client import Receiver as Receiver
from ._client import connect as connect
from ._client import connect_blocking as connect_blocking
from ._descriptor import Descriptor as Descriptor
from ._errors import DisconnectedError as DisconnectedError
from ._errors import RefusedError as RefusedError
from ._peer import Peer as Peer
from ._service import Service as Service
from ._service import Shared as Shared
from ._service import serve as serve

__all__ = [
    "BlockingClient",
    "BlockingReceiver",
    "Claim",
    "Client",
    "Descriptor",
    "DisconnectedError",
    "Peer",
    "Receiver",
    "RefusedError",
    "Sender",
    "Service",
    "Shared",
    "connect",
    "connect_blocking",
    "serve",
]
