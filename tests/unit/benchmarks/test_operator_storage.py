"""The sizes in etcd that the benchmark reads from the metrics of the API server."""

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.operator.storage import Sizes

METRICS = """\
# TYPE apiserver_resource_size_estimate_bytes gauge
apiserver_resource_size_estimate_bytes{group="finetune.dev",resource="finetunejobs"} 5000
apiserver_resource_size_estimate_bytes{group="",resource="pods"} 700
# TYPE apiserver_storage_size_bytes gauge
apiserver_storage_size_bytes{storage_cluster_id="etcd-0"} 90000
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 123
# TYPE apiserver_other gauge
apiserver_other{resource="pods"} 1
"""


def test_objects_are_counted_by_resource_and_the_file_apart() -> None:
    assert Sizes.of(text_string_to_metric_families(METRICS)) == Sizes({"finetunejobs": 5000, "pods": 700}, 90000, 123)


def test_an_api_server_without_these_metrics_has_no_sizes() -> None:
    assert Sizes.of(text_string_to_metric_families("")) == Sizes({}, 0, 0)
