"""Settings from the environment."""

import hashlib
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from app.common.settings import Settings, UnknownSettings
from schemas.sampling_schema import SamplingSettings

Environment = pytest.MonkeyPatch


def read() -> Settings:
    return Settings(_env_file=None)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: Environment) -> None:
    import os

    for name in [name for name in os.environ if name.upper().startswith("PARLEY_")]:
        monkeypatch.delenv(name)


def test_defaults_are_a_local_server_of_the_default_models() -> None:
    settings = read()
    assert settings.server.host == "127.0.0.1"
    assert (settings.model.name, settings.embedding.name, settings.embedding.kind) == (
        "default",
        "default",
        "embedding",
    )
    assert settings.api_keys == []
    assert settings.cors.origins == []
    assert not settings.strict


def test_groups_are_joined_by_two_underscores(monkeypatch: Environment) -> None:
    monkeypatch.setenv("PARLEY_ENGINE__MAX_NUM_SEQS", "7")
    monkeypatch.setenv("PARLEY_MODEL__ALIASES", '{"gpt-4o": "default"}')
    monkeypatch.setenv("PARLEY_MODELS", '[{"name": "owner/model", "pinned": true}]')
    monkeypatch.setenv("PARLEY_CORS__ORIGINS", '["https://chat.example"]')
    settings = read()
    assert settings.engine.max_num_seqs == 7
    assert settings.model.aliases == {"gpt-4o": "default"}
    assert [(each.name, each.kind, each.pinned) for each in settings.models] == [("owner/model", "chat", True)]
    assert settings.cors.origins == ["https://chat.example"]


def test_keys_are_comma_separated_and_kept_as_hashes(monkeypatch: Environment) -> None:
    digest = hashlib.sha256(b"two").digest()
    monkeypatch.setenv("PARLEY_API_KEYS", f" one, sha256:{digest.hex()} ,")
    settings = read()
    assert [each.digest for each in settings.api_keys] == [hashlib.sha256(b"one").digest(), digest]
    assert "one" not in repr(settings.api_keys)


@pytest.mark.parametrize("value", ["sha256:ab", "sha256:abcd", "sha256:nothex"])
def test_malformed_hash_is_rejected(monkeypatch: Environment, value: str) -> None:
    monkeypatch.setenv("PARLEY_API_KEYS", value)
    with pytest.raises(ValidationError, match="64 hexadecimal digits") as refused:
        read()
    assert value not in str(refused.value)


def test_keys_may_be_a_json_list(monkeypatch: Environment) -> None:
    monkeypatch.setenv("PARLEY_API_KEYS", '["one", "two"]')
    assert [each.digest for each in read().api_keys] == [hashlib.sha256(each).digest() for each in (b"one", b"two")]


@pytest.mark.parametrize("value", ["", " , ", "[]", '[""]', '["one", " "]', "[null]"])
def test_empty_keys_are_rejected(monkeypatch: Environment, value: str) -> None:
    monkeypatch.setenv("PARLEY_API_KEYS", value)
    with pytest.raises(ValidationError) as refused:
        read()
    (error,) = refused.value.errors()
    assert error["loc"][0] == "api_keys"


def test_empty_keys_in_an_env_file_are_rejected(tmp_path: Path, monkeypatch: Environment) -> None:
    (tmp_path / ".env").write_text("PARLEY_API_KEYS=\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValidationError, match="there is no key in it"):
        Settings()


@pytest.mark.parametrize("value", ["chat.example, *.example.org,::1", '["chat.example", "*.example.org", "::1"]'])
def test_allowed_hosts_may_be_comma_separated_or_json(monkeypatch: Environment, value: str) -> None:
    monkeypatch.setenv("PARLEY_SERVER__ALLOWED_HOSTS", value)
    assert read().server.allowed_hosts == ["chat.example", "*.example.org", "::1"]


@pytest.mark.parametrize("value", ["https://chat.example", "chat.example:8000", "chat.example/", "*x", '[""]'])
def test_allowed_hosts_must_be_names(monkeypatch: Environment, value: str) -> None:
    monkeypatch.setenv("PARLEY_SERVER__ALLOWED_HOSTS", value)
    with pytest.raises(ValidationError, match="without scheme, port and path"):
        read()


def test_owner_does_not_reveal_the_key(monkeypatch: Environment) -> None:
    monkeypatch.setenv("PARLEY_API_KEYS", "one,two")
    owners = [each.owner for each in read().api_keys]
    assert len(set(owners)) == 2
    assert all(owner.startswith("key_") and "one" not in owner for owner in owners)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARLEY_ENGINE__MAX_NUM_SEQS", "0"),
        ("PARLEY_SERVER__KEEPALIVE_S", "0"),
        ("PARLEY_ENGINE__TENSOR_PARALLEL_SIZE", "0"),
        ("PARLEY_ENGINE__QUANTIZATION", "int3"),
        ("PARLEY_ENGINE__KV_CACHE_RATIO", "1.5"),
        ("PARLEY_ENGINE__KV_CACHE_DTYPE", "fp8"),
        ("PARLEY_SERVER__WORKERS", "2"),  # with an SQLite file
        ("PARLEY_LOG__FORMAT", "xml"),
        ("PARLEY_MODEL__TTL_S", "0"),
        ("PARLEY_SERVER__MAX_BODY_BYTES", "1"),
        ("PARLEY_MODELS", '[{"kind": "reranker"}]'),  # has no default model
        ("PARLEY_MODELS", '[{"nmae": "x"}]'),
        ("PARLEY_MODEL__ENGINE", "remote"),  # without upstreams
        ("PARLEY_MODEL__UPSTREAMS", '["http://gpu1:8000/v1"]'),  # with the engine local
        ("PARLEY_MODELS", '[{"engine": "remote", "upstreams": ["gpu1:8000"]}]'),
        ("PARLEY_MODELS", '[{"engine": "remote", "upstreams": ["http://user:password@gpu1"]}]'),
        ("PARLEY_MODELS", '[{"engine": "remote", "upstreams": [{"url": "http://gpu1", "kind": "tgi"}]}]'),
        ("PARLEY_SERVER__PORT", "99999"),
        ("PARLEY_LOG__LEVEL", "LOUD"),
    ],
)
def test_invalid_values_are_rejected(monkeypatch: Environment, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        read()


def test_several_workers_need_a_database_and_cannot_share_a_port(monkeypatch: Environment) -> None:
    monkeypatch.setenv("PARLEY_SERVER__WORKERS", "2")
    monkeypatch.setenv("PARLEY_DATABASE__URL", "postgresql+asyncpg://here/db")
    assert read().server.workers == 2
    monkeypatch.setenv("PARLEY_SERVER__METRICS_PORT", "9100")
    with pytest.raises(ValidationError, match="METRICS_PORT"):
        read()


def test_env_file_is_read(tmp_path, monkeypatch: Environment) -> None:
    (tmp_path / ".env").write_text("PARLEY_SERVER__PORT=9000\nSOMETHING_ELSE=1\n")
    monkeypatch.chdir(tmp_path)
    assert Settings().server.port == 9000


GROUPS = {name: field for name, field in Settings.model_fields.items() if isinstance(field.default, BaseModel)}


@pytest.mark.parametrize("name", GROUPS)
def test_partly_set_group_keeps_its_other_defaults(name: str) -> None:
    field = GROUPS[name]
    assert isinstance(field.annotation, type)
    assert field.annotation() == field.default
    assert type(field.default) is field.annotation


def test_embedding_model_stays_one_if_partly_set(monkeypatch: Environment) -> None:
    monkeypatch.setenv("PARLEY_EMBEDDING__PRELOAD", "true")
    assert (read().embedding.kind, read().embedding.preload) == ("embedding", True)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PARLEY_MODLE__NAME", "PARLEY_MODEL__NAME"),
        ("PARLEY_ENGINE__MAX_NUM_SEQ", "PARLEY_ENGINE__MAX_NUM_SEQS"),
        ("PARLEY_SERVER_PORT", "PARLEY_SERVER__PORT"),
        ("parley_api_key", "PARLEY_API_KEYS"),
    ],
)
def test_unknown_name_is_rejected_with_the_nearest(
    monkeypatch: Environment, name: str, meant: str, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text(f"{name}=9000\nSOMETHING_ELSE=1\n")
    with pytest.raises(UnknownSettings, match=rf"^{name.upper()} is no setting: did you mean {meant}\?$"):
        Settings(_env_file=tmp_path / ".env")
    monkeypatch.setenv(name, "9000")
    with pytest.raises(UnknownSettings, match=meant):
        read()


def test_client_key_is_accepted_beside_the_servers_keys(monkeypatch: Environment) -> None:
    monkeypatch.setenv("PARLEY_API_KEYS", "one,two")
    monkeypatch.setenv("PARLEY_API_KEY", "one")
    assert len(read().api_keys) == 2


def test_cluster_variables_are_accepted(monkeypatch: Environment) -> None:
    """For services called parley and parley-server."""
    for name in ("PARLEY", "PARLEY_SERVER"):
        monkeypatch.setenv(f"{name}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"{name}_SERVICE_PORT_HTTP", "8000")
        monkeypatch.setenv(f"{name}_PORT", "tcp://10.0.0.1:8000")
        monkeypatch.setenv(f"{name}_PORT_8000_TCP_ADDR", "10.0.0.1")
    assert read().server.port == 8000


def test_names_below_a_dict_are_free(monkeypatch: Environment) -> None:
    monkeypatch.setenv("PARLEY_MODEL__ALIASES__mine", "default")
    assert read().model.aliases == {"mine": "default"}


def test_sampling_of_each_model(monkeypatch: Environment) -> None:
    assert read().model.sampling is None
    monkeypatch.setenv("PARLEY_MODEL__SAMPLING", "{}")
    monkeypatch.setenv("PARLEY_MODELS", '[{"name": "owner/model", "sampling": {"temperature": 0.5, "top_k": 3}}]')
    settings = read()
    assert (settings.model.sampling, settings.model.name) == (SamplingSettings(), "default")
    assert settings.models[0].sampling == SamplingSettings(temperature=0.5, top_k=3)


@pytest.mark.parametrize("value", ['{"temperature": 3}', '{"temprature": 1}', '{"top_p": 0}', "[]", '{"min_p": "x"}'])
def test_invalid_sampling_is_rejected(monkeypatch: Environment, value: str) -> None:
    monkeypatch.setenv("PARLEY_MODEL__SAMPLING", value)
    with pytest.raises(ValidationError, match=r"model\.sampling"):
        read()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "template.jinja cannot be read: No such file or directory"),
        (b"\xff", "it is not UTF-8"),
        (b"{% for message in messages %}{{ message }", r"is no Jinja template: .* \(line 1\)"),
    ],
)
def test_chat_template_is_read_at_the_start(content: bytes | None, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValidationError, match=problem):
        Settings(_env_file=None, model={"chat_template": file})


def test_chat_template_may_mark_what_the_assistant_wrote(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{% generation %}{{ messages[0].content }}{% endgeneration %}")
    assert Settings(_env_file=None, model={"chat_template": file}).model.chat_template == file


def test_chat_template_goes_with_chat_models(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("{{ messages }}")
    with pytest.raises(ValidationError, match="CHAT_TEMPLATE goes with models of kind chat, not embedding"):
        Settings(_env_file=None, embedding={"chat_template": file})
