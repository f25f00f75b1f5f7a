"""The way of a request through a replica: let in, read, understood, decoded, batched, answered.

door (429) | body (413, 408) | request (400, 415, 422) | network | arrays | batch | answer (504)
"""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request

from mmtrain.predict.answers import Prediction
from mmtrain.serving.batch import Batcher
from mmtrain.serving.config import ServingConfig
from mmtrain.serving.door import Door, client_address
from mmtrain.serving.inputs import possible_modalities, raw_value, read_input
from mmtrain.serving.meters import Meters
from mmtrain.serving.networks import Chosen, Network, Networks
from mmtrain.serving.problems import RequestError
from mmtrain.serving.requests import Question, parse_request, read_body
from mmtrain.serving.schema import PredictAnswer, to_answer, to_network

_DECODERS = 2  # threads that decode files, beside the one that answers


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What requests of one batch have in common.

    Args:
        network: that answers.
        subtasks: that it is cut to in memory first; none: it answers as it is.
        tasks: whose inputs are the same feature.
        beam_size: of text.
    """

    network: Network
    subtasks: tuple[str, ...]
    tasks: tuple[str, ...]
    beam_size: int


@dataclass(frozen=True, slots=True)
class Item:
    """An input, raw and as `build` would store it."""

    value: str | bytes
    array: np.ndarray


@dataclass(frozen=True, slots=True)
class Answered:
    """A network's answers to an input, by task."""

    network: Network
    by_task: dict[str, Prediction]


class Service:
    """Answers requests with the networks of a replica."""

    def __init__(self, networks: Networks, *, config: ServingConfig, meters: Meters) -> None:
        self.networks, self.config, self.meters = networks, config, meters
        self.door = Door(config)
        self._decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decode")
        self.batcher: Batcher[BatchKey, Item, Answered] = Batcher(
            self._answer_batch,
            max_batch=config.max_batch,
            wait_s=config.batch_wait_ms / 1e3,
            on_batch=lambda key, size: meters.batch_size.observe(size),
        )

    async def close(self) -> None:
        """Ends the threads."""
        await self.batcher.close()
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def predict(self, request: Request) -> PredictAnswer:
        """The answer to a request.

        Raises:
            MMTrainError: it is not answered, and why.
        """
        began_s = time.monotonic()
        address = client_address(request.client.host if request.client else "")
        with self.door.enter(address) as guest:
            try:
                async with asyncio.timeout(self.config.timeout_s):
                    body = await read_body(request, guest=guest, config=self.config)
            except TimeoutError:
                raise self._too_slow(408, "the request did not arrive in time") from None
            left_s = self.config.timeout_s - (time.monotonic() - began_s)
            try:
                async with asyncio.timeout(max(left_s, 0.0)):
                    question = await parse_request(request, body)
                    answered = await self._answer(question)
            except TimeoutError:
                raise self._too_slow(504, "there was no answer in time") from None
        return self._to_answer(answered, seconds=time.monotonic() - began_s)

    async def _answer(self, question: Question) -> list[Answered]:
        """The answers of each network, in the order of the tasks."""
        modality = self._modality(question)
        fields = question.fields
        chosen = self.networks.choose(task=fields.task, modality=modality, subtasks=fields.subtasks)
        value = raw_value(question.sent, modality=modality, limits=self.config.limits)
        jobs = [
            self._job(one, [task.spec.name for task in alike], value, beam_size=fields.beam_size)
            for one in chosen
            for alike in one.whole.predictor.tasks_with_same_inputs(one.tasks)
        ]
        return [await jobs[0]] if len(jobs) == 1 else await _all(jobs)

    def _modality(self, question: Question) -> str:
        """Of the input: its task's, the one named, the only one, or what the file is.

        Raises:
            RequestError: it may be one of several.
            UnknownNameError: there is no such task.
        """
        if question.fields.task is not None:
            whole = self.networks.whole(question.fields.task)
            return whole.tasks[question.fields.task].inputs.modality
        if question.fields.modality is not None:
            return question.fields.modality
        known = self.networks.modalities
        could = possible_modalities(question.sent, of=known)
        if len(known) == 1:
            return known[0]
        if len(could) == 1:
            return could[0]
        raise RequestError(
            422,
            "neither task nor modality is named",
            value=f"the input may be {', '.join(could or known)}",
            remedy="name `task` or `modality`; GET /v1/tasks lists them",
        )

    async def _job(
        self, chosen: Chosen, tasks: Sequence[str], value: str | bytes, *, beam_size: int
    ) -> Answered:
        predictor = chosen.network.predictor
        feature, vocabulary = predictor.task(tasks[0]).inputs, predictor.vocabulary

        def read() -> np.ndarray:
            limits = self.config.limits
            return read_input(value, feature=feature, vocabulary=vocabulary, limits=limits)

        if isinstance(value, str):  # bounded by its length: less than a hop to a thread
            array = read()
        else:
            array = await asyncio.get_running_loop().run_in_executor(self._decoders, read)
        subtasks = chosen.subset.subtasks if chosen.subset else ()
        key = BatchKey(chosen.network, subtasks, tuple(tasks), beam_size)
        return await self.batcher.submit(key, Item(value, array))

    def _answer_batch(self, key: BatchKey, items: Sequence[Item]) -> list[Answered]:
        network = self.networks.cut(key.network, key.subtasks) if key.subtasks else key.network
        arrays, values = [item.array for item in items], [item.value for item in items]
        answers = network.predictor.predict_batch(
            key.tasks, arrays, values=values, beam_size=key.beam_size
        )
        return [Answered(network, by_task) for by_task in answers]

    def _to_answer(self, answered: Sequence[Answered], *, seconds: float) -> PredictAnswer:
        networks = {one.network.uri: one.network for one in answered}
        places = {uri: place for place, uri in enumerate(networks)}
        answers = [
            to_answer(name, prediction, task=of.network.tasks[name], network=places[of.network.uri])
            for of in answered
            for name, prediction in of.by_task.items()
        ]
        described = [
            to_network(network, whole=self.networks.whole_of(network))
            for network in networks.values()
        ]
        return PredictAnswer(answers=answers, networks=described, seconds=seconds)

    def _too_slow(self, status: int, cause: str) -> RequestError:
        return RequestError(
            status,
            cause,
            value=f"{self.config.timeout_s:g} s",
            remedy="send a smaller input, try again later, or start the server with --timeout",
        )


async def _all(jobs: Sequence[Coroutine[Any, Any, Answered]]) -> list[Answered]:
    """Results of all; the first error ends the others."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
