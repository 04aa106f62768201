# SPDX-License-Identifier: Apache-2.0
"""What a lifecycle node makes in configure and destroys in cleanup."""

import weakref
from collections.abc import Callable
from typing import Any

from rclpy.lifecycle import LifecycleNode


class Entities(list[Any]):
    """Publishers, subscriptions, services and timers of one node, in the order in which they were made."""

    def keep(self, entity: Any) -> Any:
        """Notes what cleanup has to destroy, the moment it exists: the next one may fail to be made."""
        self.append(entity)
        return entity

    def destroy(self, node: LifecycleNode) -> None:
        """Destroys all, the last one first."""
        how: dict[str, Callable[[Any], bool]] = {
            "Subscription": node.destroy_subscription,
            "Publisher": node.destroy_publisher,
            "LifecyclePublisher": node.destroy_lifecycle_publisher,
            "Service": node.destroy_service,
            "Timer": node.destroy_timer,
        }
        while self:
            how[type(self[-1]).__name__](self.pop())
        known = node.default_callback_group.entities  # rclpy never takes out what is gone
        known.difference_update([entity for entity in known if isinstance(entity, weakref.ref) and entity() is None])
