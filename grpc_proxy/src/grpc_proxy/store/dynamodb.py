"""Records in a DynamoDB table, which proxies on several machines share without a server of their own.

Theory of operation. One item a record: `owner` and `name` are its key, an index by `expires` makes the lists. `put` and
`delete` are one conditional write each, and reads are consistent. What has expired is judged by the proxy's clock;
DynamoDB's own TTL (attribute `forget_after`) only clears away, within days.

botocore is synchronous: its calls run in a few threads. It tries each once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from grpc_proxy.store.base import Key, Listed, Record
from lambdalm.errors import Code, LlmError

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

    from grpc_proxy.store.table import DynamoDbConfig

_INDEX = "by_expiry"
_TTL = "forget_after"
_SLACK_SECONDS = 60.0
_MAX_ITEM_BYTES = 400 * 1024  # DynamoDB's limit
_OVERHEAD_BYTES = 2048  # at most, of the names, the key and the numbers
# Placeholders for attributes: most of their names are words that DynamoDB keeps for itself.
_NAMES = {f"#{name}": name for name in ("owner", "name", "version", "expires", "summary")}

Item = dict[str, Any]


class DynamoDb:
    """`seconds` is what one call may take to connect, and again to be answered."""

    name = "dynamodb"
    max_value_bytes: int | None = _MAX_ITEM_BYTES - _OVERHEAD_BYTES
    """Of value and summary together."""

    def __init__(self, config: DynamoDbConfig, seconds: float, clock: Callable[[], float]) -> None:
        self._config = config
        self._seconds = seconds
        self._clock = clock
        self._client: Any = None
        self._threads = ThreadPoolExecutor(config.threads, thread_name_prefix="dynamodb")

    async def open(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self._open)

    async def get(self, key: Key) -> Record | None:
        answer = await self._call("get_item", Key=_key(key), ConsistentRead=True)
        if "Item" not in answer:
            return None
        record = _record(answer["Item"])
        return record if record.expires > self._clock() else None

    async def put(self, key: Key, record: Record, after: str | None) -> bool:
        self._check_size(record)
        item = _item(key, record)
        if after is None:
            return await self._write("put_item", "attribute_not_exists(#owner) OR #expires <= :now", {}, Item=item)
        version = {":after": {"S": after}}
        return await self._write("put_item", "#version = :after AND #expires > :now", version, Item=item)

    async def delete(self, key: Key) -> bool:
        return await self._write("delete_item", "#expires > :now", {}, Key=_key(key))

    async def list(self, owner: str, limit: int) -> Sequence[Listed]:
        """In as many pages (of 1 MiB) as it takes."""
        listed: list[Listed] = []
        start: Item = {}
        while len(listed) < limit:
            answer = await self._page(owner, limit - len(listed), start)
            listed += [_listed(item) for item in answer["Items"]]
            if "LastEvaluatedKey" not in answer:
                break
            start = {"ExclusiveStartKey": answer["LastEvaluatedKey"]}
        return listed

    async def close(self) -> None:
        await asyncio.to_thread(self._threads.shutdown)
        if self._client is not None:
            self._client.close()

    async def _page(self, owner: str, limit: int, start: Item) -> Item:
        return await self._call(
            "query",
            IndexName=_INDEX,
            KeyConditionExpression="#owner = :owner AND #expires > :now",
            ProjectionExpression="#name, #summary, #expires",
            ExpressionAttributeNames={name: _NAMES[name] for name in ("#owner", "#name", "#summary", "#expires")},
            ExpressionAttributeValues={":owner": {"S": owner}, ":now": _number(self._clock())},
            ScanIndexForward=False,
            ConsistentRead=True,
            Limit=limit,
            **start,
        )

    async def _write(self, operation: str, condition: str, values: Item, **what: Item) -> bool:
        """Whether the condition held, so that it was done."""
        try:
            await self._call(
                operation,
                ConditionExpression=condition,
                ExpressionAttributeNames={name: word for name, word in _NAMES.items() if name in condition},
                ExpressionAttributeValues={":now": _number(self._clock()), **values},
                **what,
            )
        except _ConditionFailedError:
            return False
        return True

    async def _call(self, operation: str, **what: Any) -> Item:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(self._do, operation, what))

    def _do(self, operation: str, what: Item) -> Item:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: Item = getattr(self._client, operation)(TableName=self._config.table, **what)
        except ClientError as error:
            raise _refusal(error, self._config.table) from None
        except BotoCoreError as error:
            raise _unreached(error) from None
        return answer

    def _open(self) -> None:
        from botocore.exceptions import BotoCoreError, ClientError

        self._client = _make_client(self._config, self._seconds)
        try:
            self._client.describe_table(TableName=self._config.table)
        except ClientError as error:
            if _code(error) == "ResourceNotFoundException":
                raise LlmError(Code.FAILED_PRECONDITION, _no_table(self._config.table), origin="store") from None
        except BotoCoreError:
            pass  # it may be reached later

    def _check_size(self, record: Record) -> None:
        limit = _MAX_ITEM_BYTES - _OVERHEAD_BYTES
        if (size := len(record.value) + len(record.summary)) > limit:
            why = f"a record of {size} bytes is more than the {limit} that DynamoDB takes: use redis or sqlite for such"
            raise LlmError(Code.FAILED_PRECONDITION, why, origin="store")


class _ConditionFailedError(Exception):
    """The record is not as the write wanted it."""


def create_table(config: DynamoDbConfig) -> None:
    """Make the table (paid by request), unless it is there, and wait until it can be used.

    Raises LlmError: UNAVAILABLE, also for what AWS does not allow.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    client = _make_client(config, seconds=10)
    try:
        _create(client, config.table)
        client.get_waiter("table_exists").wait(TableName=config.table, WaiterConfig={"Delay": 2, "MaxAttempts": 60})
        _forget_by_itself(client, config.table)
    except ClientError as error:
        raise _refusal(error, config.table) from None
    except BotoCoreError as error:
        raise _unreached(error) from None
    finally:
        client.close()


def _create(client: Any, table: str) -> None:
    def keys(sort: str) -> list[Item]:
        return [{"AttributeName": "owner", "KeyType": "HASH"}, {"AttributeName": sort, "KeyType": "RANGE"}]

    types = {"owner": "S", "name": "S", "expires": "N"}
    index = {
        "IndexName": _INDEX,
        "KeySchema": keys("expires"),
        "Projection": {"ProjectionType": "INCLUDE", "NonKeyAttributes": ["summary"]},
    }
    with contextlib.suppress(client.exceptions.ResourceInUseException):  # it is there
        client.create_table(
            TableName=table,
            KeySchema=keys("name"),
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": kind} for name, kind in types.items()],
            LocalSecondaryIndexes=[index],
            BillingMode="PAY_PER_REQUEST",
        )


def _forget_by_itself(client: Any, table: str) -> None:
    described = client.describe_time_to_live(TableName=table)["TimeToLiveDescription"]
    if described["TimeToLiveStatus"] == "DISABLED":
        spec = {"Enabled": True, "AttributeName": _TTL}
        client.update_time_to_live(TableName=table, TimeToLiveSpecification=spec)


def _make_client(config: DynamoDbConfig, seconds: float) -> Any:
    import botocore.session
    from botocore.config import Config

    # At DEBUG botocore logs what it sends, and that is what people have said.
    logging.getLogger("botocore").setLevel(logging.INFO)
    return botocore.session.get_session().create_client(
        "dynamodb",
        region_name=config.region,
        endpoint_url=config.endpoint,
        config=Config(
            connect_timeout=seconds,
            read_timeout=seconds,
            retries={"total_max_attempts": 1},
            max_pool_connections=config.threads,
        ),
    )


def _key(key: Key) -> Item:
    return {"owner": {"S": key.owner}, "name": {"S": key.name}}


def _item(key: Key, record: Record) -> Item:
    return {
        **_key(key),
        "version": {"S": record.version},
        "value": {"B": record.value},
        "summary": {"B": record.summary},
        "expires": _number(record.expires),
        _TTL: {"N": str(math.ceil(record.expires + _SLACK_SECONDS))},
    }


def _record(item: Item) -> Record:
    return Record(item["value"]["B"], item["version"]["S"], item["summary"]["B"], float(item["expires"]["N"]))


def _listed(item: Item) -> Listed:
    return Listed(item["name"]["S"], item["summary"]["B"], float(item["expires"]["N"]))


def _number(value: float) -> Item:
    return {"N": repr(float(value))}


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _refusal(error: ClientError, table: str) -> LlmError | _ConditionFailedError:
    """What AWS answered, in our words: its own may repeat what was sent."""
    code = _code(error)
    if code == "ConditionalCheckFailedException":
        return _ConditionFailedError()
    if code == "ItemCollectionSizeLimitExceededException":
        return LlmError(Code.RESOURCE_EXHAUSTED, "one owner has 10 GB of records, DynamoDB's limit", origin="store")
    if code == "ResourceNotFoundException":
        return LlmError(Code.UNAVAILABLE, _no_table(table), origin="store")
    return LlmError(Code.UNAVAILABLE, f"DynamoDB refused a call on the table {table}: {code}", origin="store")


def _no_table(table: str) -> str:
    return f"DynamoDB has no table {table} in this region: make it with `grpc-proxy store-create`"


def _unreached(error: BotoCoreError) -> LlmError:
    return LlmError(Code.UNAVAILABLE, f"DynamoDB cannot be reached: {type(error).__name__}", origin="store")
