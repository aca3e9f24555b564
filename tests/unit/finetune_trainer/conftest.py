"""What the trainer's tests share: a tiny model with a real tokenizer, bundles, and an S3 server."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devcluster.ports import free_ports
from finetune_api.bundle import Bundle
from finetune_trainer.pod import termination

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
"""ChatML in shape: the end of turn is the tokenizer's eos, and a newline follows it."""

MakeBundle = Callable[..., Bundle]


def save_tokenizer(folder: Path, chat_template: str | None = TEMPLATE, bos: bool = False) -> None:
    """Saves a byte-level BPE tokenizer of 261 ids and more that reads any text. `bos`: it puts <s> first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<s>", "<|start|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick answer to the question is user assistant system"] * 8, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=[AddedToken("<|start|>", special=True)],
        chat_template=chat_template,
    )
    fast.save_pretrained(folder)


def save_model(folder: Path, **config: Any) -> None:
    """Saves a randomly initialised Llama of 2 layers and width 32 for the tokenizer of `save_tokenizer`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**settings | config)).save_pretrained(folder)


@pytest.fixture
def unstopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody has asked this process to stop, and what the test asks is forgotten afterwards."""
    monkeypatch.setattr(termination._Stop, "requested", False)
    monkeypatch.setattr(termination._Stop, "reported", False)
    monkeypatch.setattr(termination._Stop, "why", "")
    yield
    termination._Stop.unreported.clear()


@pytest.fixture
def handled(unstopped: None) -> Iterator[None]:
    """SIGTERM is handled as in a pod."""
    before = signal.getsignal(signal.SIGTERM)
    termination.handle_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Llama with a tokenizer and a chat template, as save_pretrained writes them. Read only."""
    folder = tmp_path_factory.mktemp("tiny-model")
    save_tokenizer(folder)
    save_model(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Writes rows as .jsonl."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def sum_rows(count: int) -> list[dict[str, str]]:
    """Rows that are all different, in the columns of PromptCompletion."""
    return [{"prompt": f"What is {i} plus {i}?", "completion": f"It is {2 * i}."} for i in range(count)]


PASSAGE = (
    "On the {0} day of the trial run the team of {0} measured the pressure in vessel {0} twice, wrote both values of "
    "{0} down, sent those of {0} to the office, and asked there whether {0} was the"
)


def near_copies(count: int) -> list[dict[str, str]]:
    """Pairs of rows that differ in one word of the question."""
    words = [f"{chr(97 + i % 26)}{chr(97 + i // 26)}quix{i}" for i in range(count)]
    return [
        {"prompt": f"{PASSAGE.format(word)} {ending}?", "completion": f"{word} {ending}"}
        for word in words
        for ending in ("first", "second")
    ]


OUTSIDE = ("job", "storages", "gpuTypes", "allowCPU", "preparedCache")


@pytest.fixture
def make_bundle(tmp_path: Path, tiny_model_dir: Path) -> MakeBundle:
    """Builds a Bundle over local paths. Keyword arguments replace or add parts of the spec (training={...}); `rows`:
    what the training file holds; the names of OUTSIDE: parts of the bundle itself."""

    def make(rows: Sequence[Any] | None = None, **parts: Any) -> Bundle:
        train = write_rows(tmp_path / "data" / "train.jsonl", sum_rows(60) if rows is None else rows)
        outside = {key: parts.pop(key) for key in OUTSIDE if key in parts}
        spec = {
            "model": {"uri": str(tiny_model_dir)},
            "dataset": {"train": [{"uri": str(train)}]},
            "output": {"uri": str(tmp_path / "output")},
        } | parts
        return Bundle.model_validate({"spec": spec, "allowCPU": True} | outside)

    return make


ALL = ["Admin", "Read", "Write", "List", "Tagging"]
"""What an identity of SeaweedFS may do."""


def _identity(name: str, key_id: str, secret: str, actions: list[str]) -> dict[str, Any]:
    return {"name": name, "credentials": [{"accessKey": key_id, "secretKey": secret}], "actions": actions}


@dataclass(frozen=True)
class S3:
    """A running S3 server that checks signatures."""

    endpoint: str
    secrets_dir: Path
    """Folder with the Secrets `owner` (may do everything), `reader` (may read) and `wrong` (keys nobody knows)."""
    config: Path
    """SeaweedFS's file of identities, which it reads again on SIGHUP."""
    server: subprocess.Popen[bytes]

    def client(self, key_id: str = "owner", secret: str = "owner-key") -> Any:
        """A client with these keys."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
        )

    def replace_keys(self, identity: str, key_id: str, secret: str) -> None:
        """From now on the service knows `identity`, which may do everything, by these keys only. Returns once the
        service accepts them, and so refuses earlier ones."""
        others = [each for each in json.loads(self.config.read_text())["identities"] if each["name"] != identity]
        self.config.write_text(json.dumps({"identities": [*others, _identity(identity, key_id, secret, ALL)]}))
        self.server.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while not self._knows(key_id, secret):
            assert time.monotonic() < deadline, "SeaweedFS did not read its identities again"
            time.sleep(0.05)

    def _knows(self, key_id: str, secret: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self.client(key_id, secret).list_objects_v2(Bucket="ready")
        except ClientError:
            return False
        return True

    def bucket(self, name: str) -> str:
        """Makes a bucket, or finds the one that an earlier try has made; returns its name."""
        client = self.client()
        with suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """SeaweedFS on loopback, stopped at the end."""
    folder = tmp_path_factory.mktemp("s3")
    actions = {"owner": ALL, "reader": ["Read", "List"]}
    identities = [_identity(name, name, f"{name}-key", allowed) for name, allowed in actions.items()]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    for name in [*actions, "wrong"]:
        (folder / "secrets" / name).mkdir(parents=True)
        (folder / "secrets" / name / "AWS_ACCESS_KEY_ID").write_text(name)
        (folder / "secrets" / name / "AWS_SECRET_ACCESS_KEY").write_text(f"{name}-key")
    for _ in range(3):  # a port that was free may be taken by the time it is listened on
        port, *others = free_ports(8)
        server = _start_weed(folder, port, others)
        s3 = S3(f"http://127.0.0.1:{port}", folder / "secrets", folder / "s3.json", server)
        try:
            if _comes_up(s3, server):
                yield s3
                return
        finally:
            server.kill()  # its graceful end takes 25 s, and nothing of it is kept
            server.wait()
    raise RuntimeError(f"SeaweedFS did not come up:\n{(folder / 'log').read_text()[-3000:]}")


def _start_weed(folder: Path, s3_port: int, others: list[int]) -> subprocess.Popen[bytes]:
    names = ["master.port", "volume.port", "filer.port"]
    ports = dict(zip([*names, *(f"{name}.grpc" for name in [*names, "s3.port"])], others, strict=True))
    data = tempfile.mkdtemp(dir=folder)
    command = [
        str(Path(sys.executable).parent / "weed"),
        "server",
        "-s3",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        f"-dir={data}",
        f"-s3.config={folder / 's3.json'}",
        f"-s3.port={s3_port}",
        "-s3.autoCreateBucket=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=1000",  # each bucket takes seven as soon as it holds anything
        # Left alone, these two listen on fixed ports, where a second server on this machine would be in the way.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, cwd=data, env=os.environ | {"HOME": data})


def _comes_up(s3: S3, server: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + 60
    while server.poll() is None and time.monotonic() < deadline:
        try:
            s3.bucket("ready")
            s3.client().put_object(Bucket="ready", Key="probe", Body=b"1")
            return True
        except Exception:
            time.sleep(0.2)
    return False
