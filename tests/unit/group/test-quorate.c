/* test-quorate.c - Q1-Q4: random histories of rings, told by two services in every interleaving, against the plain truth.
 *
 * A history is a list of rings as node 1 sees them, of NODES nodes with one vote each. CPG tells, per ring: NODEDOWN of agents that were there, the agents that are
 * new, the ring. The quorum service tells of the ring and its majority. The two lists are merged at random.
 * Truth: once CPG has told its ring, "quorate" only if that ring is a majority; between NODEDOWN and the ring never; in the end exactly if it is one. */
#include "group/quorate.h"

#include <glib.h>

#define NODES 5u
#define RINGS 8u

struct history { unsigned ring[RINGS]; unsigned agents; };   /* bit n: node n */

static unsigned bits(unsigned set) { return (unsigned)__builtin_popcount(set); }
static bool majority(unsigned ring) { return bits(ring) > NODES / 2; }

static struct history random_history(void)
{
	struct history h = { .agents = (unsigned)g_test_rand_int_range(0, 1 << NODES) << 1 | 2 };
	for (unsigned i = 0; i < RINGS; i++)
		h.ring[i] = (unsigned)g_test_rand_int_range(0, 1 << NODES) << 1 | 2;
	return h;
}

static size_t nodes_of(unsigned set, uint32_t out[static NODES])
{
	size_t n = 0;
	for (uint32_t i = 1; i <= NODES; i++)
		if (set & 1u << i)
			out[n++] = i;
	return n;
}

static void say_vote(struct quorate *q, const struct history *h, unsigned i)
{
	uint32_t nodes[NODES];
	size_t n = nodes_of(h->ring[i], nodes);
	quorate_on_vote(q, (struct quorate_ring){ nodes[0], 4 * (i + 1) }, majority(h->ring[i]), nodes, n);
}

/* CPG's three steps of ring i; the members after the step. */
static host_mask say_cpg(struct quorate *q, const struct history *h, unsigned i, unsigned step, host_mask members)
{
	uint32_t nodes[NODES];
	unsigned now = h->ring[i] & h->agents;
	if (step == 0 && (members & ~(host_mask)now)) {
		quorate_on_node_lost(q);
		return members & now;
	}
	if (step == 1)
		return now;
	if (step == 2)
		quorate_on_ring(q, (struct quorate_ring){ (uint32_t)__builtin_ctz(h->ring[i]), 4 * (i + 1) }, nodes, nodes_of(h->ring[i], nodes));
	return members;
}

static void run_history(void)
{
	struct history h = random_history();
	struct quorate q = { 0 };
	host_mask members = h.ring[0] & h.agents;
	unsigned cpg = 0, vote = 0;
	bool answer = false;
	while (cpg < 3 * RINGS || vote < RINGS) {
		bool lost = false;
		if (vote < RINGS && (cpg == 3 * RINGS || g_test_rand_int_range(0, 4) == 0)) {
			say_vote(&q, &h, vote++);
		} else {
			host_mask before = members;
			members = say_cpg(&q, &h, cpg / 3, cpg % 3, members);
			lost = cpg % 3 == 0 && members != before;
			cpg++;
		}
		answer = quorate_now(&q, members);
		g_assert_false(answer && (lost || q.node_lost));
		if (cpg && cpg % 3 == 0)
			g_assert_true(!answer || majority(h.ring[cpg / 3 - 1]));
	}
	g_assert_true(answer == majority(h.ring[RINGS - 1]));
}

static void test_histories(void)
{
	for (int i = 0; i < 50000; i++)
		run_history();
}

static const uint32_t three[] = { 1, 2, 3 };

static struct quorate settled(void)
{
	struct quorate q = { 0 };
	quorate_on_vote(&q, (struct quorate_ring){ 1, 8 }, true, three, 3);
	g_assert_false(quorate_now(&q, 2));
	quorate_on_ring(&q, (struct quorate_ring){ 1, 8 }, three, 3);
	g_assert_true(quorate_now(&q, 14));
	return q;
}

/* The case that it is all for: cut off, and the flag is still that of the ring before. */
static void test_cut_off(void)
{
	struct quorate q = settled();
	quorate_on_node_lost(&q);
	g_assert_false(quorate_now(&q, 2));
	quorate_on_ring(&q, (struct quorate_ring){ 1, 12 }, three, 1);
	g_assert_false(quorate_now(&q, 2));
	quorate_on_vote(&q, (struct quorate_ring){ 1, 12 }, false, three, 1);
	g_assert_false(quorate_now(&q, 2));
}

/* The same, with no agents on the lost nodes. */
static void test_cut_off_alone(void)
{
	struct quorate q = settled();
	g_assert_true(quorate_now(&q, 2));
	quorate_on_ring(&q, (struct quorate_ring){ 1, 12 }, three, 1);
	g_assert_false(quorate_now(&q, 2));
}

static void test_majority_goes_on(void)
{
	struct quorate q = settled();
	quorate_on_node_lost(&q);
	g_assert_false(quorate_now(&q, 6));
	quorate_on_vote(&q, (struct quorate_ring){ 1, 12 }, true, three, 2);
	g_assert_false(quorate_now(&q, 6));
	quorate_on_ring(&q, (struct quorate_ring){ 1, 12 }, three, 2);
	g_assert_true(quorate_now(&q, 6));
}

/* A host that comes does not stop the cluster; an agent that ends does not either. */
static void test_no_flicker(void)
{
	const uint32_t four[] = { 1, 2, 3, 4 };
	struct quorate q = settled();
	g_assert_true(quorate_now(&q, 6));
	g_assert_true(quorate_now(&q, 30));
	quorate_on_ring(&q, (struct quorate_ring){ 1, 12 }, four, 4);
	g_assert_true(quorate_now(&q, 30));
	quorate_on_vote(&q, (struct quorate_ring){ 1, 12 }, true, four, 4);
	g_assert_true(quorate_now(&q, 30));
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/group/quorate/cut-off", test_cut_off);
	g_test_add_func("/group/quorate/cut-off-alone", test_cut_off_alone);
	g_test_add_func("/group/quorate/majority-goes-on", test_majority_goes_on);
	g_test_add_func("/group/quorate/no-flicker", test_no_flicker);
	g_test_add_func("/group/quorate/histories", test_histories);
	return g_test_run();
}
