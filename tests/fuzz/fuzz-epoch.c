/* fuzz-epoch.c - the core of one host against a group in which others say what they like: no sequence of messages breaks a rule (every MUST of
 * core/), makes more actions than there is room for, lets the released epoch go back within a generation, or makes this host say what others refuse.
 *
 * The host itself is honest: it answers actions as an agent does, and what it sends is delivered to it, in order. Input: a sequence of records:
 *   0 membership   1 an encoded message as it is   2 a message of fields near to what the host believes   3 what it has sent itself
 *   4 holdings   5 configured   6 stored   7 not stored   8 placed   9 trouble   10 checkpoint   11 down   12 time */
#include "core/epoch.h"
#include "fuzz.h"

#include <glib.h>

#define SELF 2u
#define VMS 3u

struct bench {
	struct epoch *core;
	nsec_t now;
	GQueue sent;                     /* GBytes: encoded */
	uint64_t report, placing, captured, released, released_in;
	struct input in;
};

static const enum message_type types[] = {
	MESSAGE_HELLO, MESSAGE_BEGIN, MESSAGE_STORED, MESSAGE_KNOWN, MESSAGE_ABORT, MESSAGE_TROUBLE, MESSAGE_STATE, MESSAGE_RECOVER, MESSAGE_READY,
	MESSAGE_RESUME, MESSAGE_LOST, MESSAGE_DOWN, MESSAGE_CONFIG,
};

/* The group takes it, and others do, unless somebody's numbers have been driven to the end of their range. */
static void send(struct bench *b, const struct message *m)
{
	static uint8_t out[MESSAGE_GROUP_BYTES_MAX];
	static struct message again;
	size_t n = message_encode(m, out, sizeof out);
	demand(n > 0);
	bool at_end = m->generation.n > VCFT_NUMBER_MAX || (m->epoch.n > VCFT_NUMBER_MAX && m->epoch.n != UINT64_MAX);
	demand(at_end || message_decode(out, n, &again));
	if (!at_end)
		g_queue_push_tail(&b->sent, g_bytes_new(out, n));
}

static void say_hello(struct bench *b, const struct epoch_action *a)
{
	static struct message m;
	m = (struct message){ .type = MESSAGE_HELLO, .generation = a->generation, .hello.state = a->joined ? HELLO_JOINED : HELLO_EMPTY };
	send(b, &m);
}

static void carry_out(struct bench *b, const struct epoch_action *a)
{
	switch (a->type) {
	case EPOCH_ACT_SEND: send(b, a->message); break;
	case EPOCH_ACT_HELLO: say_hello(b, a); break;
	case EPOCH_ACT_REPORT: b->report = a->report; break;
	case EPOCH_ACT_PLACE: b->placing = a->generation.n; break;
	case EPOCH_ACT_CAPTURE: b->captured = a->epoch.n; break;
	case EPOCH_ACT_RELEASE:
		demand(b->released_in != a->generation.n || a->epoch.n > b->released);
		b->released = a->epoch.n;
		b->released_in = a->generation.n;
		break;
	default: break;
	}
}

static void step(struct bench *b, const struct epoch_event *event)
{
	struct epoch_action out[EPOCH_ACTIONS_MAX];
	size_t n = epoch_step(b->core, b->now, event, out);
	demand(n <= EPOCH_ACTIONS_MAX);
	for (size_t i = 0; i < n; i++)
		carry_out(b, &out[i]);
	demand(epoch_deadline(b->core) > 0);
}

static void deliver(struct bench *b, uint32_t from, const uint8_t *bytes, size_t n)
{
	static struct message m;
	if (message_decode(bytes, n, &m) && m.type != MESSAGE_STATS)
		step(b, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = { from }, .message = &m });
}

static uint32_t any_host(struct bench *b) { return 1 + (uint32_t)take(&b->in, 1) % 4; }
static host_mask any_hosts(struct bench *b) { return take(&b->in, 1) & 0x1e; }

/* A number near to one that matters. */
static uint64_t near(struct bench *b, uint64_t a, uint64_t other)
{
	uint64_t k = take(&b->in, 1);
	const uint64_t from[] = { a, other, 0, VCFT_NUMBER_MAX - 3, UINT64_MAX - 3 };
	return from[k % 5] + (k / 5) % 4;
}

static void deliver_raw(struct bench *b)
{
	uint8_t *out = malloc(MESSAGE_HEADER_BYTES + 300);
	enum message_type type = types[take(&b->in, 1) % G_N_ELEMENTS(types)];
	uint32_t from = any_host(b);
	size_t n = take(&b->in, 1), room = n;
	const uint8_t *payload = take_bytes(&b->in, &n);
	uint8_t header[MESSAGE_HEADER_BYTES] = { 0x56, 0x43, 0x46, 0x31, (uint8_t)type, 0, 0, 0, (uint8_t)n };
	memcpy(out, header, sizeof header);
	memcpy(out + sizeof header, payload, n);
	(void)room;
	deliver(b, from, out, MESSAGE_HEADER_BYTES + n);
	free(out);
}

static void fill_entries(struct bench *b, struct message *m, const struct epoch_view *v)
{
	m->vm_count = m->type == MESSAGE_STATE || m->type == MESSAGE_STORED ? (uint32_t)take(&b->in, 1) % 5 : take(&b->in, 1) % 8 ? VMS : 2;
	for (uint32_t i = 0; i < m->vm_count; i++) {
		if (m->type == MESSAGE_STATE)
			m->holding[i] = (struct message_holding){ { (uint32_t)take(&b->in, 1) % 5 }, { near(b, v->committed.n, v->begun.n) },
				{ near(b, v->committed.n, v->begun.n) }, { near(b, v->committed.n, 1) }, take(&b->in, 1) & 1 };
		else if (m->type == MESSAGE_STORED)
			m->stored[i].vm.n = (uint32_t)take(&b->in, 1) % 5, m->stored[i].complete = any_hosts(b);
		else
			m->placement[i] = (struct message_placement){ { (uint32_t)take(&b->in, 1) % 5 }, any_hosts(b) };
	}
}

static void deliver_near(struct bench *b)
{
	static struct message m;
	static uint8_t out[MESSAGE_GROUP_BYTES_MAX];
	struct epoch_view v;
	epoch_view(b->core, &v);
	memset(&m, 0, offsetof(struct message, placement));
	m.type = types[take(&b->in, 1) % (G_N_ELEMENTS(types) - 1)];
	uint32_t from = any_host(b);
	m.generation.n = near(b, v.number.n, v.number.n + (1u << EPOCH_LEADER_BITS));
	m.epoch.n = near(b, v.committed.n, v.begun.n);
	m.hosts = take(&b->in, 1) & 1 ? v.members : any_hosts(b);
	m.vm.n = (uint32_t)take(&b->in, 1) % 5;
	m.hello.state = take(&b->in, 1) & 1;
	if (m.type == MESSAGE_BEGIN || m.type == MESSAGE_RECOVER || m.type == MESSAGE_STATE || m.type == MESSAGE_STORED)
		fill_entries(b, &m, &v);
	size_t n = message_encode(&m, out, sizeof out);
	demand(n > 0);
	deliver(b, from, out, n);
}

static void deliver_own(struct bench *b)
{
	g_autoptr(GBytes) m = g_queue_pop_head(&b->sent);
	if (m)
		deliver(b, SELF, g_bytes_get_data(m, NULL), g_bytes_get_size(m));
}

static void say_holdings(struct bench *b)
{
	struct message_holding h[VMS];
	struct epoch_view v;
	uint64_t bits = take(&b->in, 1);
	epoch_view(b->core, &v);
	for (uint32_t i = 0; i < VMS; i++)
		h[i] = (struct message_holding){ { i }, v.committed, { bits & 1 ? v.begun.n : 0 }, { v.committed.n ? 1 : 0 }, (bits >> i) & 1 };
	step(b, &(struct epoch_event){ .type = EPOCH_EV_HOLDINGS, .holdings = h, .count = bits % (VMS + 1), .report = b->report });
}

static void configure(struct bench *b)
{
	static struct epoch_config c;
	uint64_t bits = take(&b->in, 1);
	c = (struct epoch_config){ .vm_count = VMS, .backups = bits & 3, .interval = 100, .patience = bits & 4 ? 1000 : 0, .hold_when_degraded = bits & 8 };
	c.preferred[0].n = any_host(b);
	step(b, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .generation.n = bits & 16 ? take(&b->in, 1) : 0, .config = &c });
}

static void stored(struct bench *b, enum epoch_event_type type)
{
	struct epoch_stored s[VMS];
	for (uint32_t i = 0; i < VMS; i++)
		s[i] = (struct epoch_stored){ { i }, any_hosts(b) };
	step(b, &(struct epoch_event){ .type = type, .epoch = { b->captured }, .stored = s, .count = (uint32_t)take(&b->in, 1) % (VMS + 1),
	                               .vm.n = (uint32_t)take(&b->in, 1) % VMS, .hosts = any_hosts(b) });
}

static void membership(struct bench *b)
{
	uint64_t bits = take(&b->in, 1);
	step(b, &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = (bits & 0x1e) | 1u << SELF, .quorate = bits & 1, .needed = (uint32_t)(bits >> 5) % 4 });
}

static void record(struct bench *b)
{
	switch (take(&b->in, 1) % 13) {
	case 0: membership(b); break;
	case 1: deliver_raw(b); break;
	case 2: deliver_near(b); break;
	case 3: deliver_own(b); break;
	case 4: say_holdings(b); break;
	case 5: configure(b); break;
	case 6: stored(b, EPOCH_EV_STORED); break;
	case 7: stored(b, EPOCH_EV_NOT_STORED); break;
	case 8: step(b, &(struct epoch_event){ .type = EPOCH_EV_PLACED, .generation = { b->placing } }); break;
	case 9: step(b, &(struct epoch_event){ .type = EPOCH_EV_TROUBLE, .vm.n = (uint32_t)take(&b->in, 1) % (VMS + 1) }); break;
	case 10: step(b, &(struct epoch_event){ .type = EPOCH_EV_CHECKPOINT }); break;
	case 11: step(b, &(struct epoch_event){ .type = EPOCH_EV_DOWN }); break;
	default: b->now += (nsec_t)take(&b->in, 4); step(b, &(struct epoch_event){ .type = EPOCH_EV_TICK }); break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct bench b = { .core = epoch_new((struct host_id){ SELF }), .now = 1, .in = { data, n } };
	g_queue_init(&b.sent);
	while (b.in.left)
		record(&b);
	g_queue_clear_full(&b.sent, (GDestroyNotify)g_bytes_unref);
	epoch_free(b.core);
	return 0;
}
