"""What an engine counts and times, for Prometheus; each has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

STATUSES = ("ok", "bad_request", "foreign", "overloaded", "unavailable", "timed_out", "cancelled", "failed")
SECONDS = (*(a * 10**b for b in (-4, -3, -2, -1, 0) for a in (1, 2, 5)), 10.0, 30.0)


class Metrics:
    """Of the engine that serves ``model``; ``queued`` gives the images that wait now."""

    def __init__(self, model: str, sizes: Iterable[int], queued: Callable[[], int]) -> None:
        client = _client()
        self.registry = client.CollectorRegistry()

        def made(kind: type, name: str, text: str, **options):
            labels = ("model", *options.pop("labels", ()))
            metric = kind(f"hscc_{name}", text, labels, registry=self.registry, **options)
            return metric if len(labels) > 1 else metric.labels(model)

        requests = made(client.Counter, "requests", "Requests by how they ended.", labels=("status",))
        self._requests = {status: requests.labels(model, status) for status in STATUSES}
        self.images = made(client.Counter, "images", "Images that the model has answered.")
        self.flagged = made(client.Counter, "flagged_images", "Images above the guard's threshold.")
        self.retried = made(client.Counter, "failed_batches", "Batches that raised and were run request by request.")
        self.batch = made(client.Histogram, "batch_images", "Images in a forward pass.", buckets=tuple(sizes))
        self.queue = made(client.Histogram, "queue_seconds", "From arrival to the batch.", buckets=SECONDS)
        self.compute = made(client.Histogram, "compute_seconds", "Of a batch, with its transfers.", buckets=SECONDS)
        self.ready = made(client.Gauge, "ready", "1 while requests are taken.")
        made(client.Gauge, "queued_images", "Images that wait now.").set_function(queued)

    def ended(self, status: str) -> None:
        """One request more that ended so; ``status`` is of :data:`STATUSES`."""
        self._requests[status].inc()

    def value(self, name: str, **labels: str) -> float:
        """The sum of all samples of that full name, e.g. ``hscc_requests_total``, that have these labels."""
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )


class _Merged:
    """Families, each name once: a page must not describe one twice."""

    def __init__(self, families: Iterable) -> None:
        self.families = tuple(families)

    def collect(self) -> Iterator:
        merged: dict[str, object] = {}
        for family in self.families:
            if family.name in merged:
                merged[family.name].samples += family.samples
            else:
                merged[family.name] = family
        return iter(merged.values())


def collected(metrics: Iterable[Metrics], **labels: str) -> list:
    """All engines' families now, every sample with these labels too; they can go to another process."""
    families = [family for one in metrics for family in one.registry.collect()]
    for family in families:  # made anew each time
        family.samples = [one._replace(labels={**one.labels, **labels}) for one in family.samples]
    return families


def written(families: Iterable) -> tuple[bytes, str]:
    """Families in Prometheus' text format, and its content type."""
    client = _client()
    return client.generate_latest(_Merged(families)), client.CONTENT_TYPE_LATEST


def page(metrics: Iterable[Metrics]) -> tuple[bytes, str]:
    """All engines' metrics in Prometheus' text format, and its content type."""
    return written(collected(metrics))


def _client():
    try:
        import prometheus_client
    except ImportError as error:
        raise ImportError("serving needs prometheus_client: pip install 'hscc[serve]'") from error
    return prometheus_client
