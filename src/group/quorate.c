/* quorate.c - the quorum flag that goes with a membership.
 *
 * The agents in the group come from corosync's CPG, the quorum flag from its quorum service: two connections, read in any order, and each may be a
 * ring ahead of the other. The flag counts the votes of *nodes* in one totem ring; few of them need to run agents, so it cannot be worked out
 * from the members of the group. What must never happen: a host that has just been cut off sees a group of itself alone, together with
 * the flag of the ring before, "quorate". It would recover the cluster a second time.
 *
 * Both services name the ring they speak of by the same id. Within one ring CPG tells first which agents went with lost nodes (NODEDOWN), then which
 * came with new ones (NODEUP), then the ring itself; messages of the new ring come after that. The quorum service judges a ring after CPG has
 * told it. So:
 *
 *  Q1 "Not quorate" from the quorum service counts at once, whatever ring it is of.
 *  Q2 "Quorate" counts when it was said of the very ring that CPG is in, and all members are nodes of that ring.
 *  Q3 Between the two, the last answer stays only if nobody whose vote it may have counted is gone: not after NODEDOWN, and not if a node of the
 *     judged ring is missing in CPG's. A ring that has only grown leaves the answer as it is (else each host that comes would stop the cluster).
 *  Q4 An agent that ends on a node that stays takes no vote away: the flag stands.
 *
 * That the flag itself is true of at most one partition is votequorum's part: it needs more than half of the expected votes. corosync.c refuses
 * the settings with which it does not (two_node, too few expected votes, no provider at all). Pure; any thread. */
#include "group/quorate.h"

#include <string.h>

static void set_view(struct quorate_view *v, struct quorate_ring ring, const uint32_t *nodes, size_t count)
{
	v->known = true;
	v->ring = ring;
	v->count = count < QUORATE_NODES_MAX ? count : QUORATE_NODES_MAX;
	if (v->count)
		memcpy(v->nodes, nodes, v->count * sizeof *nodes);
}

static bool has_node(const struct quorate_view *v, uint32_t node)
{
	for (size_t i = 0; i < v->count; i++)
		if (v->nodes[i] == node)
			return true;
	return false;
}

/* All members are nodes of the view. */
static bool covers(const struct quorate_view *v, host_mask members)
{
	for (uint32_t n = 1; n <= VCFT_HOST_MAX; n++)
		if (host_in(members, (struct host_id){ n }) && !has_node(v, n))
			return false;
	return true;
}

static bool same_ring(const struct quorate *q)
{
	return q->cpg.known && q->vote.known && !q->node_lost && q->cpg.ring.node == q->vote.ring.node && q->cpg.ring.seq == q->vote.ring.seq;
}

/* Q3: is somebody gone whose vote the last answer may have counted? */
static bool vote_gone(const struct quorate *q)
{
	if (q->node_lost)
		return true;
	for (size_t i = 0; i < q->vote.count; i++)
		if (!has_node(&q->cpg, q->vote.nodes[i]))
			return true;
	return false;
}

void quorate_on_ring(struct quorate *q, struct quorate_ring ring, const uint32_t *nodes, size_t count)
{
	set_view(&q->cpg, ring, nodes, count);
	q->node_lost = false;
}

void quorate_on_vote(struct quorate *q, struct quorate_ring ring, bool flag, const uint32_t *nodes, size_t count)
{
	set_view(&q->vote, ring, nodes, count);
	q->flag = flag;
}

void quorate_on_node_lost(struct quorate *q) { q->node_lost = true; }

bool quorate_now(struct quorate *q, host_mask members)
{
	if (!q->flag || !q->cpg.known)
		q->last = false;                         /* Q1 */
	else if (same_ring(q) && covers(&q->vote, members))
		q->last = true;                          /* Q2 */
	else if (vote_gone(q))
		q->last = false;                         /* Q3 */
	return q->last;
}
