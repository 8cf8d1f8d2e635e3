"""Waiting for loads: which leases wait for which transfers. Loads start at admission, end with a
poll, and may be cancelled by a release.

``Residency`` makes the copies; this file knows the leases that wait for them.
"""

from __future__ import annotations

from scalesim.memory.lease import Lease
from scalesim.memory.residency import Residency
from scalesim.memory.tree.run import Transfer
from scalesim.memory.tree.segment import Segment
from scalesim.memory.tree.walk import lineage


class LoadWaiters:
    """Starts the loads of leases, and ends their waiting. ``num_pages`` counts the device pages
    held by waiting leases: pages that are being loaded, and private pages that are idle
    meanwhile."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self.num_pages = 0

    def start(self, lease: Lease, chain: list[Segment], pages: list[int]) -> None:
        """Load what ``chain``, from the root on, lacks into ``pages``, and wait for that and for
        loads that are under way. What is on the disk is read to the host first."""
        parts = []
        on_disk = []
        transfers: dict[int, Transfer] = {}
        for segment in chain:
            if (load := segment.device.transfer) is not None:
                transfers[id(load)] = load
            count = segment.num_missing
            if count:
                parts.append((segment, pages[:count]))
                pages = pages[count:]
                if (num_on_disk := segment.num_blocks - len(segment.host)) > 0:
                    on_disk.append((segment, num_on_disk))
        if on_disk:
            self._residency.disk.start_recall(on_disk)
        if parts:
            transfer = self._residency.start_load(parts, demand=True)
            transfers[id(transfer)] = transfer
        for transfer in transfers.values():
            lease.wait_for(transfer)

    def start_attachment(self, lease: Lease, segment: Segment, pages: list[int]) -> None:
        """Load what ``segment`` lacks into ``pages``: from the host if all of it is there, else
        from its source."""
        if pages:
            if segment.host.valid == segment.num_blocks:
                self._residency.start_load([(segment, pages)], demand=True)
            else:
                self._residency.start_read(segment, pages)
        if segment.device.transfer is not None:
            lease.wait_for(segment.device.transfer)

    def wait(self, lease: Lease) -> None:
        """Count the pages of ``lease`` until its loads are over. To be called after all loads were
        started."""
        if not lease.is_ready:
            self.num_pages += len(lease.private) + lease.num_host_blocks

    def poll(self) -> list[Lease]:
        """Take in finished copies. Returns the leases that are ready now, or failed."""
        woken = []
        for transfer in self._residency.poll():
            for lease in transfer.waiters:
                if lease.loaded(transfer):
                    self.num_pages -= len(lease.private) + lease.num_host_blocks
                    woken.append(lease)
        return woken

    def abort(self, lease: Lease) -> None:
        """Let ``lease`` wait no more, and cancel its loads that have not started and that no other
        lease waits for."""
        self.num_pages -= len(lease.private) + lease.num_host_blocks
        lease.stop_waiting()
        pinned = [*lineage(lease.end), *(attachment.segment for attachment in lease.attachments)]
        loads = [load for segment in pinned if (load := segment.device.transfer)]
        for transfer in {id(load): load for load in loads}.values():
            transfer.waiters = [waiter for waiter in transfer.waiters if waiter is not lease]
            if not transfer.waiters and transfer.purpose == "demand":
                self._residency.cancel(transfer)
