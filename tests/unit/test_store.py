"""The tracking store: where it is, how it is opened, and what is asked of its tables directly."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from helpers.project import ROOT, Project
from helpers.servers import broken_server
from helpers.store import use_store
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as MlflowStore

from lineup.errors import UserError
from lineup.tracking import location, sqlite_tables, store
from lineup.tracking.location import shown_uri
from lineup.tracking.store import StoreError, client_for_user, download, open_experiment
from lineup.tracking.store import client as connect


@pytest.fixture(autouse=True)
def default_store(here, monkeypatch):
    use_store(monkeypatch)


def ask(query, path="mlflow.db"):
    with closing(sqlite3.connect(path)) as database, database:
        return database.execute(query).fetchall()


def test_the_columns_that_are_asked_directly_exist_in_mlflows_schema():
    connect()
    wanted = {
        "experiments": {"experiment_id", "artifact_location"},
        "runs": {"artifact_uri"},
        "logged_models": {"model_id", "artifact_location"},
        "model_versions": {"name", "version", "storage_location"},
        "registered_model_aliases": {"name", "alias", "version"},
    }
    assert set(sqlite_tables.LOCATION_COLUMNS) < set(wanted)
    for table, columns in wanted.items():
        found = {row[1] for row in ask(f"PRAGMA table_info({table})")}
        assert columns <= found, (
            f"MLflow changed its table {table}: see lineup/tracking/sqlite_tables.py"
        )


@pytest.mark.slow
def test_a_store_that_somebodys_mlflow_makes_at_the_same_time_is_kept(monkeypatch):
    def make_after_somebody(uri, root):
        with MlflowStore("sqlite:///mlflow.db", "mlartifacts").engine.begin() as database:
            database.exec_driver_sql("CREATE TABLE theirs (x)")
        return MlflowStore(uri, root)

    monkeypatch.setattr(store, "SqlAlchemyStore", make_after_somebody)
    connect().create_experiment("ours")
    assert ask("SELECT * FROM theirs") == [] and ask("PRAGMA integrity_check") == [("ok",)]
    assert not Path("mlflow.db.new").exists()


@pytest.mark.parametrize("uri", ["", "sqlite:///mlflow.db", "sqlite:///mlflow.db?timeout=30"])
def test_a_relative_address_is_the_repositorys_own_store_from_everywhere(
    uri, monkeypatch, tmp_path
):
    use_store(monkeypatch, uri, registry=uri)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # as in the temporary workspace of an experiment
    connect().create_experiment("here")
    assert not list(Path().iterdir())
    assert ("here",) in ask("SELECT name FROM experiments", tmp_path / "mlflow.db")
    assert location.artifact_root() == tmp_path / "mlartifacts"
    assert location.store_key() == "mlflow.db"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "file:mlruns", "./mlruns", "/tmp/mlruns"])
@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"])
def test_file_stores_are_refused_in_one_sentence_that_names_variable_and_way_out(
    uri, variable, monkeypatch
):
    use_store(monkeypatch, **{"uri" if "TRACKING" in variable else "registry": uri})
    hint = f"unset {variable}, or name a server or sqlite:///mlflow.db"
    with pytest.raises(UserError) as error:
        connect()
    assert str(error.value) == f"{variable}={uri}: MLflow has no file stores any more; {hint}"


def test_sync_ends_with_a_non_zero_code_where_the_store_is_refused(tmp_path):
    shutil.copytree(ROOT / "stages", "stages")
    shutil.copytree(ROOT / "lineup", "lineup")
    shutil.copy(ROOT / "params.yaml", ".")
    result = Project(tmp_path).run(
        "python", "-m", "stages.sync", check=False, MLFLOW_TRACKING_URI="file:mlruns"
    )
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: MLFLOW_TRACKING_URI=file:mlruns: MLflow has no file")
    assert len(result.stderr.splitlines()) == 1


def test_a_store_of_an_older_mlflow_says_how_to_upgrade_it(tmp_path, monkeypatch):
    connect()
    older = tmp_path / "older.db"
    ask(f"VACUUM INTO '{older}'")
    ask("UPDATE alembic_version SET version_num = '0584bdc529eb'", older)
    use_store(monkeypatch, f"sqlite:///{older}")
    with pytest.raises(StoreError, match=f"keep a copy, then run: mlflow db upgrade .*{older}"):
        connect()


def test_a_new_store_takes_nothing_from_the_log_that_a_deleted_one_left():
    connect().create_experiment("old")
    assert Path("mlflow.db-wal").stat().st_size  # as a kill leaves it
    Path("mlflow.db").unlink()
    connect()
    assert ask("SELECT name FROM experiments") == [("Default",)]
    assert ask("PRAGMA integrity_check") == [("ok",)]


def test_a_store_whose_artifacts_are_elsewhere_on_purpose_is_left_as_it_is(tmp_path):
    connect()
    elsewhere = tmp_path / "disk" / "mlartifacts"
    elsewhere.mkdir(parents=True)
    ask(f"UPDATE experiments SET artifact_location = '{elsewhere}/0'")
    sqlite_tables.relocate(tmp_path / "mlflow.db")
    assert ask("SELECT artifact_location FROM experiments") == [(f"{elsewhere}/0",)]
    elsewhere.rmdir()  # the store was moved here from there
    sqlite_tables.relocate(tmp_path / "mlflow.db")
    assert ask("SELECT artifact_location FROM experiments") == [(f"{tmp_path}/mlartifacts/0",)]


def test_a_store_that_mlflow_ui_made_is_moved_with_the_repository_too(tmp_path):
    open_experiment(connect(), "e")
    ask("UPDATE experiments SET artifact_location = '/before/mlartifacts' WHERE name = 'e'")
    ask("UPDATE experiments SET artifact_location = 'mlflow-artifacts:/0' WHERE experiment_id = 0")
    sqlite_tables.relocate(tmp_path / "mlflow.db")
    found = {location for (location,) in ask("SELECT artifact_location FROM experiments")}
    assert found == {"mlflow-artifacts:/0", f"{tmp_path}/mlartifacts"}


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://ann:sec/ret@db/lineup", "postgresql://ann:***@db/lineup"),
        (
            "postgresql://db/x?user=ann&password=secret&a=b",
            "postgresql://db/x?user=ann&password=***&a=b",
        ),
        ("http://localhost:5000", "http://localhost:5000"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
    ],
)
def test_an_address_is_shown_without_its_password(address, shown, monkeypatch):
    use_store(monkeypatch, address)
    assert shown_uri() == shown


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("http://localhost:5000:5000", "MLFLOW_TRACKING_URI is no address"),
        ("postgresql+nodriver://ann:secret@localhost/lineup", "is the address right"),
        ("mysql+pymysql://ann:secret@localhost/lineup", "database's driver installed"),
    ],
)
def test_a_wrong_address_is_one_line_without_its_password(address, reason, monkeypatch):
    use_store(monkeypatch, address)
    with pytest.raises(UserError, match=reason) as error:
        client_for_user()
    assert "secret" not in str(error.value)


def test_a_damaged_store_is_one_line_to_who_wants_a_model():
    Path("mlflow.db").write_bytes(b"no database at all")
    for ask_store in (client_for_user, lambda: download("models:/digits@champion")):
        with pytest.raises(UserError, match="file is not a database; move it away, and make sync"):
            ask_store()


def test_an_experiment_that_can_not_be_made_is_told_with_the_reason(monkeypatch):
    def refuse(*_):
        raise MlflowException("the disk is full")

    client = connect()
    monkeypatch.setattr(client, "create_experiment", refuse)
    with pytest.raises(MlflowException, match="the disk is full"):
        open_experiment(client, "mnist")


@pytest.mark.parametrize(
    ("status", "reason"),
    [(401, "it knows no such user and password"), (403, "this user may not do that")],
)
def test_a_server_that_refuses_somebody_is_an_error_that_says_what_to_set(
    status, reason, monkeypatch
):
    with broken_server(f"answers {status}") as address:
        use_store(monkeypatch, address)
        for ask_server in (client_for_user, lambda: download("models:/digits@champion")):
            with pytest.raises(UserError, match=f"{reason}.* set MLFLOW_TRACKING_USERNAME and"):
                ask_server()
