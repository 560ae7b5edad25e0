"""A device's contact to the coordinator: its key, the connection, and how it is first known."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING

from cascade.errors import RemoteError
from cascade.federation import statements
from cascade.federation.terms import Attestation, Enrolment, TrainingProfile
from cascade.signing import SigningKey
from edge.federation.state import DeviceFolder, DeviceState

if TYPE_CHECKING:  # gRPC takes a quarter of a second
    from cascade.wire import ClientProfile, GrpcFederation


class Contact:
    """One cluster's. Nothing is opened or made before it is needed.

    Arguments:
        attest, connect: see ``Participant``.
    """

    def __init__(
        self,
        profile: ClientProfile,
        folder: DeviceFolder,
        *,
        attest: Callable[[bytes], Attestation] | None,
        connect: Callable[[ClientProfile], GrpcFederation] | None,
    ) -> None:
        self._profile, self._folder = profile, folder
        self._attest, self._connect = attest, connect
        self._service: GrpcFederation | None = None

    @property
    def key(self) -> SigningKey:
        """The device's, made when it is first asked for."""
        return SigningKey.load_or_create(self._folder.key_path)

    @property
    def device_id(self) -> str:
        """The device's name in every federation."""
        return self.key.public.key_id

    def service(self) -> GrpcFederation:
        """The federation's, connected."""
        from cascade.wire import GrpcFederation

        if self._service is None:
            self._service = (self._connect or GrpcFederation)(self._profile)
        return self._service

    async def enrolled(self, state: DeviceState) -> DeviceState:
        """The state of a device that the coordinator knows."""
        if state.coordinator_id:
            return state
        key, service = self.key, self.service()
        given = await service.challenge(key.public.raw)
        known = await service.enrol(
            Enrolment(
                key.public.raw,
                given.challenge,
                key.sign_raw(statements.enrolment(given.challenge)),
                await self._attested(key.public.raw),
                self.described(),
            )
        )
        state = replace(state, coordinator_id=known.coordinator_id)
        self._folder.save(state)
        return state

    def described(self) -> TrainingProfile:
        """What it is told of the device: not how much it has to learn from."""
        return TrainingProfile(
            sdk_version=metadata.version("edge-cloud-cascade"),
            architecture=platform.machine(),
        )

    async def close(self) -> None:
        """Close the connection."""
        service, self._service = self._service, None
        if service is not None:
            await service.close()

    async def _attested(self, public_key: bytes) -> Attestation | None:
        if self._attest is None:
            return None
        try:
            return await asyncio.to_thread(self._attest, public_key)
        except Exception as problem:  # whatever the platform raises
            raise RemoteError(
                "UNAVAILABLE", f"the platform does not attest now: {problem}"
            ) from None
