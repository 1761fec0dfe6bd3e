"""``[bus.remote]``: another way to the bus, over TCP, for those who have a key."""

from collections.abc import Awaitable, Callable

from supervisord_py.host.bus_router import RECEIVE_HWM, Router
from supervisord_py.host.facade import Peer
from supervisord_py.host.remote_door import RemoteDoor
from supervisord_py.host.remote_keys import KeyFolder
from supervisord_py.wire.bus import FRAME_MAX
from supervisord_py.wire.curve import Certificate


class RemoteBus:
    """The listener of the bus; its router does everything else.

    Args:
        own: The supervisor's key.
        keys: Who may come.
        router: The bus.
        on_refused: Is told who was refused, and why.
    """

    def __init__(
        self,
        own: Certificate,
        keys: KeyFolder,
        router: Router,
        *,
        on_refused: Callable[[Peer, str], Awaitable[None]],
    ) -> None:
        self._router = router
        self._is_open = False
        self._door = RemoteDoor(
            "bus",
            own,
            keys,
            message_max=FRAME_MAX,
            queue=router.queue,
            ahead=RECEIVE_HWM,
            on_left=router.left,
            on_refused=on_refused,
            on_news=router.kick,
        )

    def open(self, address: str) -> None:
        self._door.bind(address)
        self._router.add(self._door.socket, self._door)
        self._is_open = True

    def keys_changed(self) -> None:
        self._door.keys_changed()

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._router.remove(self._door.socket)
        await self._door.close()
