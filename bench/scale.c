/* scale.c - the protocol on more hosts than there are: the real core (core/epoch.c), virtual time, and measured costs.
 *
 *     group: a token goes round ──► loop of each host ──► core ──CAPTURE──► pauses ──all──► markers ──all──► sends ──► links ──► backups ──all──► STORED
 *
 * Given are the costs of one VM and of one message (growth.py measures them); what comes out is what a checkpoint then takes with so many hosts and VMs.
 *
 *  - A machine has cores; what is to be done there takes turns of QUANTUM on them, first come first served. Several hosts may share one machine.
 *  - A host's loop does one thing at a time. VMs are captured at the same time, a job each.
 *  - The group is a token that rests a hop at each host: a message waits for it for half a round, then goes from its sender's link to every other host.
 *  - A link sends one thing after the other; each machine has one.
 *
 * No faults, no retransmissions, no frames in flight, idle guests: the simulator that looks for errors is tests/sim. Prints one JSON object. */
#include "base/clock.h"
#include "core/epoch.h"

#include <glib.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define QUANTUM (100 * NSEC_PER_USEC)
#define END (300 * NSEC_PER_SEC)
#define WARM_UP 5u                          /* epochs that are not counted: backups are chosen in them */
#define MARKER_BYTES 36u

/* What is given: times in µs. */
static int hosts = 3, vms = 4, cores = 2, machines, epochs = 40, interval_ms = 200, link_mbit = 1000, bytes = 20000;
static double pause_us = 1500, send_us = 300, receive_us = 200, deliver_us = 50, hop_us = 100, wire_us = 50;

static const GOptionEntry options[] = {
	{ "hosts", 0, 0, G_OPTION_ARG_INT, &hosts, "Hosts", "N" },
	{ "vms", 0, 0, G_OPTION_ARG_INT, &vms, "VMs, spread over the hosts", "N" },
	{ "machines", 0, 0, G_OPTION_ARG_INT, &machines, "Machines that the hosts share (one for each)", "N" },
	{ "cores", 0, 0, G_OPTION_ARG_INT, &cores, "Cores of a machine", "N" },
	{ "epochs", 0, 0, G_OPTION_ARG_INT, &epochs, "Checkpoints that are counted", "N" },
	{ "interval", 0, 0, G_OPTION_ARG_INT, &interval_ms, "Between two of them", "MS" },
	{ "link", 0, 0, G_OPTION_ARG_INT, &link_mbit, "Of each machine", "MBIT/S" },
	{ "bytes", 0, 0, G_OPTION_ARG_INT, &bytes, "That a VM sends to each backup in an epoch", "BYTES" },
	{ "pause", 0, 0, G_OPTION_ARG_DOUBLE, &pause_us, "CPU time of a VM's pause", "US" },
	{ "send", 0, 0, G_OPTION_ARG_DOUBLE, &send_us, "CPU time to encode and send a VM's epoch", "US" },
	{ "receive", 0, 0, G_OPTION_ARG_DOUBLE, &receive_us, "CPU time of the backup for it", "US" },
	{ "deliver", 0, 0, G_OPTION_ARG_DOUBLE, &deliver_us, "CPU time of a message of the group, or of a marker, at its receiver", "US" },
	{ "hop", 0, 0, G_OPTION_ARG_DOUBLE, &hop_us, "Of the token, from host to host", "US" },
	{ "wire", 0, 0, G_OPTION_ARG_DOUBLE, &wire_us, "Latency between two hosts", "US" },
	{ NULL },
};

/* ---- time ---- */

struct event { nsec_t at; uint64_t order; void (*fire)(void *); void *argument; };

static GSequence *events;                   /* struct event, in order of time */
static uint64_t event_order;
static nsec_t now;

static gint by_time(gconstpointer a, gconstpointer b, gpointer user)
{
	const struct event *x = a, *y = b;
	(void)user;
	return x->at != y->at ? (x->at < y->at ? -1 : 1) : x->order < y->order ? -1 : x->order > y->order;
}

static void at(nsec_t when, void (*fire)(void *), void *argument)
{
	struct event *e = g_new(struct event, 1);
	*e = (struct event){ MAX(when, now), event_order++, fire, argument };
	g_sequence_insert_sorted(events, e, by_time, NULL);
}

static void next_event(void)
{
	GSequenceIter *first = g_sequence_get_begin_iter(events);
	struct event e = *(struct event *)g_sequence_get(first);
	g_sequence_remove(first);
	now = e.at;
	e.fire(e.argument);
}

static nsec_t usec(double us) { return (nsec_t)(us * NSEC_PER_USEC); }

/* ---- machines ---- */

struct job { struct machine *on; nsec_t left; void (*done)(void *); void *argument; };

struct machine { GQueue waiting; int idle; nsec_t link_free, used; };

static struct machine *machine;

static void run_jobs(struct machine *m);

static void slice_over(void *argument)
{
	struct job *j = argument;
	struct machine *m = j->on;
	m->idle++;
	if (j->left > 0) {
		g_queue_push_tail(&m->waiting, j);
	} else {
		j->done(j->argument);
		g_free(j);
	}
	run_jobs(m);
}

static void run_jobs(struct machine *m)
{
	while (m->idle && !g_queue_is_empty(&m->waiting)) {
		struct job *j = g_queue_pop_head(&m->waiting);
		nsec_t slice = MIN(j->left, QUANTUM);
		m->idle--;
		m->used += slice;
		j->left -= slice;
		at(now + slice, slice_over, j);
	}
}

static void work(struct machine *m, double us, void (*done)(void *), void *argument)
{
	struct job *j = g_new(struct job, 1);
	*j = (struct job){ m, usec(us), done, argument };
	g_queue_push_tail(&m->waiting, j);
	run_jobs(m);
}

/* When the last byte has come. Between hosts of one machine nothing is on a link. */
static nsec_t transmit(struct machine *from, const struct machine *to, size_t n)
{
	if (from == to)
		return now + usec(wire_us);
	from->link_free = MAX(from->link_free, now) + (nsec_t)((double)n * 8e3 / link_mbit);
	return from->link_free + usec(wire_us);
}

/* ---- hosts ---- */

struct letter { struct message *m; struct host_id from; unsigned left; };

struct host {
	struct host_id id;
	struct machine *on;
	struct epoch *core;
	GQueue inbox;                        /* struct letter, in the group's order */
	bool busy, configured;
	nsec_t tick_at, begun;
	struct epoch_id capture;
	struct message_placement placement[VCFT_VM_MAX];
	host_mask others;
	unsigned to_capture, to_store, markers, waited_markers;
};

struct vm_work { struct host *of; uint32_t vm; nsec_t started; unsigned acks; };

static struct host *host;
static struct epoch_config config;
static nsec_t token_free;
static GArray *commit_times, *pauses;
static unsigned committed;
static uint64_t messages;

static void step(struct host *h, const struct epoch_event *in);

/* Encoded, by docs/protocol.md: a head, and an entry for each VM. */
static size_t message_bytes(const struct message *m)
{
	size_t entry = m->type == MESSAGE_BEGIN || m->type == MESSAGE_RECOVER ? 24 : m->type == MESSAGE_STORED ? 24 : m->type == MESSAGE_STATE ? 32 : 0;
	return MESSAGE_HEADER_BYTES + 28 + entry * m->vm_count;
}

static void read_next(struct host *h);

static void letter_read(void *argument)
{
	struct host *h = argument;
	struct letter *l = g_queue_pop_head(&h->inbox);
	bool first_config = l->m->type == MESSAGE_CONFIG && !h->configured;
	step(h, &(struct epoch_event){ .type = EPOCH_EV_MESSAGE, .from = l->from, .message = l->m });
	if (first_config) {
		h->configured = true;
		step(h, &(struct epoch_event){ .type = EPOCH_EV_CONFIGURED, .generation = l->m->generation, .config = &config });
	}
	if (--l->left == 0) {
		g_free(l->m);
		g_free(l);
	}
	h->busy = false;
	read_next(h);
}

static void read_next(struct host *h)
{
	if (h->busy || g_queue_is_empty(&h->inbox))
		return;
	h->busy = true;
	work(h->on, deliver_us, letter_read, h);
}

struct arrival { struct host *to; struct letter *letter; };

static void arrive(void *argument)
{
	struct arrival *a = argument;
	g_queue_push_tail(&a->to->inbox, a->letter);
	read_next(a->to);
	g_free(a);
}

/* Its place in the order is the token's; it is at each host when the sender's link has brought it there, and all before it have come. */
static void mcast(struct host *from, const struct message *m)
{
	static nsec_t last[VCFT_HOST_MAX + 1];
	nsec_t rounds = usec(hop_us * hosts / 2.0);
	struct letter *l = g_new(struct letter, 1);
	size_t used = offsetof(struct message, placement) + m->vm_count * sizeof m->holding[0];
	*l = (struct letter){ g_memdup2(m, used), from->id, (unsigned)hosts };
	messages++;
	token_free = MAX(token_free + usec(hop_us) / 8, now + rounds);   /* several go with one visit of the token */
	for (int x = 1; x <= hosts; x++) {
		struct arrival *a = g_new(struct arrival, 1);
		*a = (struct arrival){ &host[x], l };
		nsec_t there = x == (int)from->id.n ? token_free : MAX(token_free, transmit(from->on, host[x].on, message_bytes(m)));
		last[x] = MAX(last[x], there);
		at(last[x], arrive, a);
	}
}

/* ---- a checkpoint ---- */

static bool is_here(const struct host *h, uint32_t vm) { return h->placement[vm].host.n == h->id.n; }

static void acknowledged(void *argument)
{
	struct vm_work *w = argument;
	struct host *h = w->of;
	if (--w->acks)
		return;
	g_free(w);
	if (--h->to_store)
		return;
	g_autofree struct epoch_stored *stored = g_new(struct epoch_stored, VCFT_VM_MAX);
	uint32_t count = 0;
	for (uint32_t v = 0; v < config.vm_count; v++)
		if (is_here(h, v))
			stored[count++] = (struct epoch_stored){ { v }, h->placement[v].backups };
	step(h, &(struct epoch_event){ .type = EPOCH_EV_STORED, .epoch = h->capture, .stored = stored, .count = count });
}

struct copy_work { struct vm_work *of; struct host *backup; };

static void received(void *argument)
{
	struct copy_work *c = argument;
	at(transmit(c->backup->on, c->of->of->on, 64), acknowledged, c->of);
	g_free(c);
}

static void copy_came(void *argument)
{
	struct copy_work *c = argument;
	work(c->backup->on, receive_us, received, c);
}

static void encoded(void *argument)
{
	struct vm_work *w = argument;
	host_mask backups = w->of->placement[w->vm].backups;
	w->acks = MAX(host_count(backups), 1u);
	if (!backups)
		acknowledged(w);
	for (int x = 1; x <= hosts; x++)
		if (host_in(backups, host[x].id)) {
			struct copy_work *c = g_new(struct copy_work, 1);
			*c = (struct copy_work){ w, &host[x] };
			at(transmit(w->of->on, host[x].on, (size_t)bytes), copy_came, c);
		}
}

static void send_if_recorded(struct host *h)
{
	if (h->to_capture || h->markers < h->waited_markers)
		return;
	h->markers -= h->waited_markers;
	for (uint32_t v = 0; v < config.vm_count; v++)
		if (is_here(h, v)) {
			struct vm_work *w = g_new(struct vm_work, 1);
			*w = (struct vm_work){ h, v, now, 0 };
			work(h->on, send_us, encoded, w);
		}
	h->waited_markers = UINT_MAX;
}

static void marker_read(void *argument)
{
	struct host *h = argument;
	h->markers++;
	send_if_recorded(h);
}

static void marker_came(void *argument)
{
	struct host *h = argument;
	work(h->on, deliver_us, marker_read, h);
}

static void captured(void *argument)
{
	struct vm_work *w = argument;
	struct host *h = w->of;
	if (committed >= WARM_UP) {
		double took = (double)(now - w->started) / NSEC_PER_USEC;
		g_array_append_val(pauses, took);
	}
	g_free(w);
	if (--h->to_capture)
		return;
	for (int x = 1; x <= hosts; x++)
		if (host_in(h->others, host[x].id))
			at(transmit(h->on, host[x].on, MARKER_BYTES), marker_came, &host[x]);
	send_if_recorded(h);
}

static void capture(struct host *h, const struct epoch_action *act)
{
	h->begun = now;
	h->capture = act->epoch;
	memcpy(h->placement, act->placement, config.vm_count * sizeof h->placement[0]);
	h->others = 0;
	h->to_capture = 0;
	for (uint32_t v = 0; v < config.vm_count; v++) {
		h->others |= host_bit(h->placement[v].host) & ~host_bit(h->id);
		h->to_capture += is_here(h, v);
	}
	h->to_store = h->to_capture;
	h->waited_markers = host_count(h->others);
	for (uint32_t v = 0; v < config.vm_count; v++)
		if (is_here(h, v)) {
			struct vm_work *w = g_new(struct vm_work, 1);
			*w = (struct vm_work){ h, v, now, 0 };
			work(h->on, pause_us, captured, w);
		}
}

static void commit(struct host *h)
{
	if (h->id.n != 1)
		return;
	double took = (double)(now - h->begun) / NSEC_PER_MSEC;
	if (++committed > WARM_UP)
		g_array_append_val(commit_times, took);
}

/* ---- the core ---- */

static void say(struct host *h, enum message_type type, struct generation g, bool joined)
{
	struct message m;
	memset(&m, 0, offsetof(struct message, placement));
	m.type = type;
	m.generation = g;
	m.hello.state = joined ? HELLO_JOINED : HELLO_EMPTY;
	mcast(h, &m);
}

static void carry_out(struct host *h, const struct epoch_action *a, GArray *answers)
{
	struct epoch_event answer = { 0 };
	switch (a->type) {
	case EPOCH_ACT_SEND: mcast(h, a->message); return;
	case EPOCH_ACT_HELLO: say(h, MESSAGE_HELLO, a->generation, a->joined); return;
	case EPOCH_ACT_INVITE: say(h, MESSAGE_CONFIG, a->generation, true); return;
	case EPOCH_ACT_CAPTURE: capture(h, a); return;
	case EPOCH_ACT_COMMIT: commit(h); return;
	case EPOCH_ACT_REPORT: answer.type = EPOCH_EV_HOLDINGS; break;
	case EPOCH_ACT_PLACE: answer = (struct epoch_event){ .type = EPOCH_EV_PLACED, .generation = a->generation }; break;
	default: return;
	}
	g_array_append_val(answers, answer);
}

static void tick(void *argument)
{
	struct host *h = argument;
	if (h->tick_at > now)
		return;
	h->tick_at = INT64_MAX;
	step(h, &(struct epoch_event){ .type = EPOCH_EV_TICK });
}

static void step(struct host *h, const struct epoch_event *in)
{
	struct epoch_action out[EPOCH_ACTIONS_MAX];
	g_autoptr(GArray) answers = g_array_new(FALSE, FALSE, sizeof(struct epoch_event));
	size_t count = epoch_step(h->core, now, in, out);
	for (size_t i = 0; i < count; i++)
		carry_out(h, &out[i], answers);
	for (guint i = 0; i < answers->len; i++)
		step(h, &g_array_index(answers, struct epoch_event, i));
	nsec_t deadline = epoch_deadline(h->core);
	if (deadline != INT64_MAX && deadline != h->tick_at) {
		h->tick_at = deadline;
		at(deadline, tick, h);
	}
}

/* ---- main ---- */

static void start(void)
{
	machine = g_new0(struct machine, machines);
	for (int i = 0; i < machines; i++)
		machine[i].idle = cores;
	host = g_new0(struct host, hosts + 1);
	config = (struct epoch_config){ .vm_count = (uint32_t)vms, .backups = 1, .interval = interval_ms * NSEC_PER_MSEC, .patience = 100 * NSEC_PER_SEC };
	for (int v = 0; v < vms; v++)
		config.preferred[v] = (struct host_id){ (uint32_t)(v % hosts) + 1 };
	host_mask all = 0;
	for (int x = 1; x <= hosts; x++) {
		host[x] = (struct host){ .id = { (uint32_t)x }, .on = &machine[(x - 1) % machines], .core = epoch_new((struct host_id){ (uint32_t)x }),
			                 .tick_at = INT64_MAX };
		all |= host_bit(host[x].id);
	}
	for (int x = 1; x <= hosts; x++)
		step(&host[x], &(struct epoch_event){ .type = EPOCH_EV_MEMBERSHIP, .hosts = all, .quorate = true, .needed = (uint32_t)hosts / 2 + 1 });
	say(&host[1], MESSAGE_CONFIG, (struct generation){ 0 }, true);
}

static int by_size(const void *a, const void *b)
{
	double d = *(const double *)a - *(const double *)b;
	return d < 0 ? -1 : d > 0;
}

static double quantile(GArray *values, double q)
{
	g_array_sort(values, by_size);
	return values->len ? g_array_index(values, double, MIN(values->len - 1, (guint)(q * values->len))) : 0;
}

static bool options_fit(void)
{
	return hosts >= 2 && hosts <= (int)VCFT_HOST_MAX && vms >= 1 && vms <= (int)VCFT_VM_MAX && machines >= 1 && machines <= hosts && cores >= 1 && epochs >= 1 &&
	       interval_ms >= 1 && link_mbit >= 1 && bytes >= 0 && pause_us > 0 && send_us > 0 && receive_us > 0 && deliver_us > 0 && hop_us >= 0 && wire_us >= 0;
}

struct counted { nsec_t from, used; };

/* False: not one checkpoint was committed. */
static bool run(struct counted *ret)
{
	*ret = (struct counted){ 0 };
	start();
	while (!g_sequence_is_empty(events) && now < END && committed < WARM_UP + (unsigned)epochs) {
		next_event();
		if (committed == WARM_UP && !ret->from)
			*ret = (struct counted){ now, machine[0].used };
	}
	return commit_times->len > 0;
}

static void print(const struct counted *c)
{
	printf("{\"hosts\": %d, \"vms\": %d, \"machines\": %d, \"epochs\": %u, \"commit_ms\": %.3f, \"commit_p99_ms\": %.3f, \"pause_us\": %.1f, "
	       "\"apart_ms\": %.2f, \"busy_percent\": %.1f}\n", hosts, vms, machines, commit_times->len, quantile(commit_times, 0.5), quantile(commit_times, 0.99),
	       quantile(pauses, 0.5), (double)(now - c->from) / NSEC_PER_MSEC / commit_times->len,
	       100.0 * (double)(machine[0].used - c->used) / (double)(now - c->from));
}

static bool read_options(int argc, char **argv)
{
	g_autoptr(GOptionContext) context = g_option_context_new("- what a checkpoint takes on more hosts than there are");
	g_autoptr(GError) error = NULL;
	g_option_context_add_main_entries(context, options, NULL);
	bool read = g_option_context_parse(context, &argc, &argv, &error);
	machines = machines ? machines : hosts;
	if (read && options_fit())
		return true;
	fprintf(stderr, "scale: %s\n", read ? "2 to 63 hosts, 1 to 1024 VMs, at most as many machines as hosts; times above 0" : error->message);
	return false;
}

int main(int argc, char **argv)
{
	struct counted counted;
	if (!read_options(argc, argv))
		return 2;
	events = g_sequence_new(g_free);
	commit_times = g_array_new(FALSE, FALSE, sizeof(double));
	pauses = g_array_new(FALSE, FALSE, sizeof(double));
	if (run(&counted)) {
		print(&counted);
		return 0;
	}
	fprintf(stderr, "scale: no checkpoint was committed in %lld s\n", (long long)(now / NSEC_PER_SEC));
	return 1;
}
