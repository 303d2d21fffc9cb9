"""A visitor's first event without a description of every component of all pages, which all would wait for."""

from typing import Any

from gradio.blocks import Block, BlocksConfig


class DescribedOnce(BlocksConfig):
    """The components of `config`; Gradio makes a copy of it, and of all descriptions, for every session.

    With three models a description of everything takes a third of a second, in which nothing is served.
    """

    def __init__(self, config: BlocksConfig) -> None:
        vars(self).update(vars(config))
        self._described: dict[int, tuple[Block, dict[str, Any]]] = {}

    def __copy__(self) -> BlocksConfig:
        own = super().__copy__()
        own.config_for_block = self.config_for_block
        return own

    def config_for_block(
        self, _id: int, rendered_ids: list[int], block: Block, renderable: Any = None
    ) -> dict[str, Any]:
        """As Gradio's; of a component that a session has not replaced it is made once.

        Sessions put values of their own into "props" and change nothing else.
        """
        if renderable is not None or self.blocks.get(_id) is not block:
            return super().config_for_block(_id, rendered_ids, block, renderable)
        known, config = self._described.get(_id, (None, {}))
        if known is not block:
            config = super().config_for_block(_id, rendered_ids, block)
            self._described[_id] = block, config
        return config | {"props": dict(config["props"])}
