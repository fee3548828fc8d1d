/* quorate.h - private to group/: may these members decide for the cluster?  The reasoning is at the top of quorate.c. */
#ifndef VCFT_GROUP_QUORATE_H
#define VCFT_GROUP_QUORATE_H

#include "base/types.h"

#define QUORATE_NODES_MAX 128u   /* as CPG_MEMBERS_MAX */

/* One configuration of the totem ring, as both services name it. */
struct quorate_ring { uint32_t node; uint64_t seq; };
struct quorate_view { bool known; struct quorate_ring ring; uint32_t nodes[QUORATE_NODES_MAX]; size_t count; };

/* All zero: nothing is known yet. */
struct quorate {
	struct quorate_view cpg;       /* the ring in which CPG delivers now */
	struct quorate_view vote;      /* the ring that the quorum service judged, and */
	bool flag;                     /* what it said */
	bool node_lost;                /* CPG said NODEDOWN; the ring that goes with it has not been told yet */
	bool last;                     /* the answer given last */
};

/* CPG told its ring; the quorum service told its judgement; CPG told that a node with an agent went down. */
void quorate_on_ring(struct quorate *q, struct quorate_ring ring, const uint32_t *nodes, size_t count);
void quorate_on_vote(struct quorate *q, struct quorate_ring ring, bool flag, const uint32_t *nodes, size_t count);
void quorate_on_node_lost(struct quorate *q);
/* The answer for these members of the CPG group, now. */
bool quorate_now(struct quorate *q, host_mask members);

#endif
