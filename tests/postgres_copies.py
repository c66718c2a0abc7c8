"""Copies of a migrated PostgreSQL database, emptied and used again: a new one takes seven times as long."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import uuid4

import asyncpg

from tools.faults.postgres import PostgresServer

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
LEFT_S = 60
TABLES = "pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version'"
SCHEMA = """
    SELECT md5(string_agg(concat(attrelid, attname, atttypid, attnotnull), ',' ORDER BY attrelid, attnum))
        || (SELECT count(*) FROM pg_constraint) || (SELECT string_agg(version_num, ',') FROM alembic_version)
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace"""
# plans stay those of a new copy: while nothing was analysed, the planner takes every small table for one of ten pages
IS_SMALL = f"SELECT bool_and(reltuples = -1 AND pg_relation_size(oid) < 10 * 8192) FROM {TABLES}"
EMPTY = f"SELECT string_agg(format('DELETE FROM %I', relname), ';') FROM {TABLES}"
RESTART = "SELECT setval(seqrelid::regclass, seqstart, false) FROM pg_sequence"


class PostgresCopies:
    def __init__(self, server: PostgresServer, template: str) -> None:
        self._server = server
        self._template = template
        self._schema: str | None = None
        self._free: list[str] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[str]:
        """Its URL."""
        name = self._free.pop() if self._free else await copy(self._server, self._template)
        yield self._server.url(name)
        if await self._emptied(name):
            self._free.append(name)
        else:
            await drop(self._server, name)

    async def _emptied(self, name: str) -> bool:
        """Whether it is as a new copy."""
        connection = await asyncpg.connect(self._server.url(name))
        try:
            await connection.execute(f"SELECT pg_terminate_backend(pid, {LEFT_S * 1000}) {OTHERS}")
            if await connection.fetchval(SCHEMA) != await self._template_schema():
                return False
            await connection.execute("SET session_replication_role = replica")  # no order among the tables
            await connection.execute(await connection.fetchval(EMPTY))
            await connection.execute(RESTART)
            return bool(await connection.fetchval(IS_SMALL))
        finally:
            await connection.close()

    async def _template_schema(self) -> str:
        if self._schema is None:
            connection = await asyncpg.connect(self._server.url(self._template))
            self._schema = str(await connection.fetchval(SCHEMA))
            await connection.close()
        return self._schema


async def copy(server: PostgresServer, template: str) -> str:
    """Its name."""
    name = f"parley_{uuid4().hex}"
    await server.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    return name


async def drop(server: PostgresServer, name: str) -> None:
    await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
