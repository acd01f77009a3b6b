"""The courier of a hospital's own installation, for SuperNodes that run Flower's stock executor."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from strategies.courier import carry

__all__ = ["app"]

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def answer(message: Message, context: Context) -> Message:
    """Carry one message to the enclave of its visit."""
    reply = carry(message.content, context.node_config, answering=message.metadata.message_id)
    return Message(reply, reply_to=message)
