"""Assembles the cloning server. Parts start in the order from top to bottom, and end in the reverse order."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import timedelta
from functools import partial

from aivo.cloning.v1.cloning_service_pb2_grpc import add_CloningServiceServicer_to_server
from aivo.cloning.v1.student_model_service_pb2_grpc import add_StudentModelServiceServicer_to_server
from aivo.cloning.v1.student_service_pb2_grpc import add_StudentServiceServicer_to_server

from cloning_server.clones.clone_store import CloneStore
from cloning_server.clones.feed import Feed
from cloning_server.clones.file_rewriter import FileRewriter
from cloning_server.clones.joint_feed import JointFeed
from cloning_server.clones.registry import Registry
from cloning_server.clones.upkeep_store import UpkeepStore
from cloning_server.edge.health import CloningHealthCheck
from cloning_server.edge.servicer import CloningServicer
from cloning_server.edge.student_servicer import StudentModelServicer, StudentServicer
from cloning_server.fleet.ray_trainer import RayTrainer
from cloning_server.fleet.supervisor import ANSWER_SHARE
from cloning_server.running.brain import GrpcBrain
from cloning_server.running.runner import CloneRunner, RunPolicy
from cloning_server.running.worker import Worker
from cloning_server.settings import CloningSettings
from cloning_server.students.erasure import Erasure
from cloning_server.students.export import Exporter
from cloning_server.students.housekeeping import Housekeeping
from cloning_server.students.residues import ResidueTerms
from cloning_server.training import Trainer
from mesh.adapters.notices import announce, announce_deletion
from mesh.adapters.s3 import S3Blobs
from mesh.adapters.store import AdapterStore
from mesh.alerts.alert_store import AlertStore
from mesh.log import get_logger
from mesh.rpc.channels import open_channel
from mesh.rpc.server import Server
from mesh.rpc.watch_places import WatchPlaces
from mesh.valkey.connection import open_redis
from mesh.valkey.wakeups import Wakeups

CLONING_SERVICE = "aivo.cloning.v1.CloningService"
STUDENT_MODEL_SERVICE = "aivo.cloning.v1.StudentModelService"
STUDENT_SERVICE = "aivo.cloning.v1.StudentService"

_log = get_logger(__name__)


async def run(settings: CloningSettings) -> None:
    """Serves until it is told to stop or a background task fails, and then drains.

    Raises:
        InvalidSettings: A file that they name can't be used.
        OSError: If the server can't listen.
        TaskFailed: A background task kept crashing.
    """
    # Actors may run on other machines, and open no baseline.
    async with RayTrainer(settings.without_master_keys()) as trainer, open_server(settings, trainer=trainer) as server:
        server.watch(trainer)
        await server.serve_until_signal()


@asynccontextmanager
async def open_server(settings: CloningSettings, *, trainer: Trainer) -> AsyncIterator[Server]:
    """Builds everything except the trainer. Clones run while this is open; leaving it drains the server.

    Opens no connection yet: the server starts even while its stores or the brain are down, and its health says so.
    """
    async with AsyncExitStack() as stack:
        server = _server(settings)
        sealing = settings.sealing()
        if not sealing.seals:
            _log.warning(
                "baselines_not_sealed", why="no MASTER_KEY: the files of Valkey hold students' answers as text"
            )
        redis = await stack.enter_async_context(aclosing(open_redis(settings.redis_url)))
        store = CloneStore(redis, tenant=settings.tenant)
        # Connections of its own, so that no lease is renewed late because thousands of watchers read.
        worker_redis = await stack.enter_async_context(aclosing(open_redis(settings.redis_url)))
        worker_registry = Registry.of(CloneStore(worker_redis, tenant=settings.tenant), sealing=sealing)
        registry = Registry.of(
            store,
            sealing=sealing,
            queue_limit=settings.clone_queue_limit,
            parallel=settings.clones_at_once,
            require_consent=settings.require_consent,
            order_bytes=settings.clone_order_bytes,
        )
        wakeups = server.watch(await stack.enter_async_context(Wakeups(redis, store.channel)))
        blobs = await stack.enter_async_context(S3Blobs.of(settings))
        adapters = AdapterStore(blobs, tenant=settings.tenant, announce=partial(announce, redis))
        brain = GrpcBrain(await stack.enter_async_context(open_channel(settings.brain_address)))

        policy = _policy(settings)
        runner = CloneRunner(worker_registry.leases, trainer=trainer, adapters=adapters, brain=brain, policy=policy)
        worker = Worker(
            worker_registry.leases,
            changes=worker_registry.changes,
            wakeups=wakeups,
            runner=runner,
            # Clones that this server can't train now stay in the queue, for another server.
            seats=lambda: 0 if server.draining else trainer.seats,
            parallel=settings.clones_at_once,
            lease_seconds=settings.lease_seconds,
        )
        server.watch(await stack.enter_async_context(worker))
        alerts = AlertStore(redis, tenant=settings.tenant)
        upkeep_store = UpkeepStore(redis, tenant=settings.tenant)
        rewriter = FileRewriter(upkeep_store, redis, every_seconds=settings.file_rewrite_seconds)
        server.watch(await stack.enter_async_context(rewriter))
        erasure = Erasure(
            upkeep_store,
            changes=registry.changes,
            adapters=adapters,
            alerts=alerts,
            brain=brain,
            inform_brains=partial(announce_deletion, redis, tenant=settings.tenant),
            trust_seconds=settings.adapter_trust_seconds,
            residue_terms=ResidueTerms(
                file_rewrite_seconds=settings.file_rewrite_seconds,
                reply_cache_seconds=settings.reply_cache_seconds,
                trainer_seconds=ANSWER_SHARE * settings.train_timeout_seconds,
                has_cohorts=bool(settings.cohort_prefix),
            ),
            file_problems=lambda: rewriter.problems,
        )
        housekeeping = _housekeeping(settings, upkeep_store, adapters=adapters, erasure=erasure)
        server.watch(await stack.enter_async_context(housekeeping))

        health = CloningHealthCheck(
            registry.listing,
            store=store,
            wakeups=wakeups,
            worker=worker,
            adapters=adapters,
            trainer=trainer,
            brain=brain,
            is_draining=lambda: server.draining,
            problems=lambda: (*server.task_faults, *housekeeping.problems, *rewriter.problems, *sealing.problems),
        )
        server.watch(await stack.enter_async_context(health))
        feed = Feed(
            registry.changes,
            listing=registry.listing,
            wakeups=wakeups,
            heartbeat_seconds=settings.heartbeat_seconds,
        )
        joint_feed = JointFeed(
            registry.changes,
            listing=registry.listing,
            wakeups=wakeups,
            heartbeat_seconds=settings.heartbeat_seconds,
        )
        server.add(
            add_CloningServiceServicer_to_server,
            CloningServicer(
                registry,
                feed=feed,
                joint_feed=joint_feed,
                watch_places=WatchPlaces(limit=settings.watch_limit),
                adapters=adapters,
                health=health,
            ),
            service=CLONING_SERVICE,
            # Clones are accepted while the trainer still loads, and wait for it.
            ready=lambda: health.accepts_clones,
        )
        server.add(
            add_StudentModelServiceServicer_to_server,
            StudentModelServicer(adapters, trainer=trainer),
            service=STUDENT_MODEL_SERVICE,
            # Of the store alone, which `GetHealth` asks; a gateway must not lose all replicas while it is down.
            ready=lambda: True,
        )
        server.add(
            add_StudentServiceServicer_to_server,
            StudentServicer(erasure, exporter=Exporter(registry, adapters=adapters, alerts=alerts), trainer=trainer),
            service=STUDENT_SERVICE,
            ready=lambda: health.has_clone_store,
        )
        stack.push_async_callback(server.stop)
        yield server


def _policy(settings: CloningSettings) -> RunPolicy:
    return RunPolicy(
        epochs=settings.clone_epochs,
        least_steps=settings.clone_least_steps,
        require_consent=settings.require_consent,
        train_seconds=settings.train_timeout_seconds,
        save_seconds=settings.save_timeout_seconds,
        deploy_seconds=settings.deploy_timeout_seconds,
        pause_seconds=settings.trainer_pause_seconds,
        keep_versions=settings.keep_versions,
        cohort_prefix=settings.cohort_prefix,
    )


def _housekeeping(
    settings: CloningSettings, store: UpkeepStore, *, adapters: AdapterStore, erasure: Erasure
) -> Housekeeping:
    days = settings.retention_days
    return Housekeeping(
        store,
        adapters=adapters,
        erasure=erasure,
        every_seconds=settings.housekeeping_seconds,
        keep_changes=timedelta(hours=settings.clone_changes_hours),
        retention=None if days is None else timedelta(days=days),
        largest_share=settings.retention_largest_share,
    )


def _server(settings: CloningSettings) -> Server:
    return Server(
        host=settings.cloning_host,
        port=settings.cloning_port,
        metrics_port=settings.cloning_metrics_port,
        drain_seconds=settings.drain_seconds,
        reflection=settings.reflection,
        caller_limit=settings.caller_limit,
        idle_seconds=settings.connection_idle_seconds,
    )
