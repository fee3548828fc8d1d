/* epoch.c - the protocol of one host; see epoch.h for events, actions and rules E1-E9, docs/protocol.md for the reasons.
 *
 * Three numbers say where a host stands:
 *   lived    the newest generation that it has seen resumed: what its images belong to (HELLO says it)
 *   seen     the newest RECOVER that it has acted on, or promised to as an empty witness (STATE says it): never act on a lower one. A number is
 *            a count and the leader's id behind it: no two RECOVERs have the same, so hosts with the same number have acted on the same one
 *   joined   it holds the cluster's configuration; EMPTY hosts are witnesses: they count for quorums, and hold nothing
 * lived and seen outlive the process (REMEMBER); seen > lived: a recovery that has not been resumed, as far as this host knows.
 *
 * One step:  1 the event, by the table at the end;  then what follows from it, in this order, each by one function with one call site:
 *   2 commit    STORED from all       → KNOWN is sent
 *   3 apply     KNOWN from all        → images move; only now, so that no image leaves c behind while a host exists that does not know c
 *   4 release   a quorum lives here   → uplinks let go; behind 3, so that what the outside sees is applied here
 *   5 propose   STATE from all        → RECOVER                               } the leader alone
 *   6 resume    READY from all        → RESUME                                }
 *   7 give up   out of patience       → ABORT                                 }
 *   8 begin     the interval is over  → BEGIN; behind all above, so that it sees them  }
 *   9 ask       answers are missing   → READY(0), by whoever waits
 *
 * Nothing of a message is believed that its sender could not say: wrong generation, state, sender or participant and it is dropped.
 * Thread: the caller's. Left out: how members are found (group/), how VMs are captured, placed and run (agent/). */
#include "core/epoch.h"

#include "base/must.h"
#include "core/mutant.h"
#include "core/placement.h"

#include <stdlib.h>
#include <string.h>

#define STATES 4u
#define UNLIVED_MAX 6u
#define SENDS_MAX (UNLIVED_MAX + 3u)
#define EPOCH_UNKNOWN epoch_of(UINT64_MAX)   /* in STATE: a newcomer's newest committed */
#define HOST_FOR(h, set) for (struct host_id h = host_lowest(set); h.n; h = host_lowest((set) & ~host_bit(h) & -host_bit(h)))
#define ASK_AGAIN NSEC_PER_SEC               /* whoever waits for a HELLO or a STATE asks for it after this */
#define INVITE_AGAIN NSEC_PER_SEC            /* an empty host that has not joined is invited again, in case that it missed it */
#define SETTLE NSEC_PER_SEC                  /* defaults of the configuration's settle and retry */
#define RETRY NSEC_PER_SEC
#define RETRY_DOUBLINGS 3

/* A RECOVER that a host has acted on and never saw resumed. at: the checkpoint that it was to, if the host holds that still as it held it then; else 0. */
struct acted { struct generation generation; struct epoch_id at; };

/* What this host knows of another one, or of itself, by what it has said. */
struct member {
	bool heard, joined;                  /* HELLO */
	bool stated;                         /* STATE for this membership, and nothing since that changes it */
	struct generation lived, seen;
	struct generation taken;             /* the last RECOVER that it is a participant of: a STATE from before is void */
	struct epoch_id committed;           /* STATE */
	struct epoch_id known;               /* KNOWN of this generation */
	uint32_t count;                      /* of its holdings: epoch.holding */
	unsigned unlived_count;
	struct acted unlived[UNLIVED_MAX];        /* besides seen */
};

struct epoch {
	struct host_id self;
	enum epoch_state state;
	struct generation lived, seen;
	unsigned unlived_count;
	struct acted unlived[UNLIVED_MAX];   /* as in struct member; the newest are kept */
	struct generation issued;            /* my last RECOVER: no number is ever used twice */
	host_mask members;
	bool quorate;
	uint32_t needed;
	struct member of[VCFT_HOST_MAX + 1];
	struct epoch_config config;
	struct generation running;           /* what the last BEGIN in this membership was of, outside of it */
	bool reading;                        /* CONFIG came, CONFIGURED not yet; lived and seen of then: */
	struct generation read_lived, read_seen;
	bool invited;                        /* joined a running cluster; its next BEGIN makes this host a participant */
	bool newcomer;                       /* and until an epoch is committed it cannot say which one was the last */

	/* the generation */
	host_mask participants;              /* of the last BEGIN or RECOVER */
	host_mask electors;                  /* members since RECOVER: their READY counts */
	host_mask ready;
	host_mask live_here;                 /* hosts that said that they live in this generation */
	struct epoch_id begun, committed, applied, known, released;
	struct message_placement placement[VCFT_VM_MAX];
	host_mask complete[VCFT_VM_MAX];     /* as of committed */

	/* the epoch that was begun last */
	bool aborted, answered;
	host_mask with_vms, stored;
	host_mask stored_complete[VCFT_VM_MAX];
	nsec_t begun_at, settled_at;
	nsec_t due;                          /* the next one, by the leader's clock */

	/* the leader's */
	bool proposed, resume_sent, begin_sent, abort_sent, wanted;
	unsigned out_of_patience;            /* times in a row: each time it lasts twice as long, for a first epoch, or one of a busy guest, may be large */
	nsec_t invited_at;
	host_mask suspect[VCFT_VM_MAX];
	nsec_t suspect_until[VCFT_VM_MAX], suspect_for[VCFT_VM_MAX];

	host_mask avoid[VCFT_VM_MAX];        /* hosts that could not place the VM, until an epoch commits */
	nsec_t waiting_since;                /* for somebody's HELLO or STATE */
	uint64_t report;
	bool reporting, lost, was_protected;

	/* the step */
	struct epoch_action *out;
	size_t out_count, send_count;
	struct message_placement shown[VCFT_VM_MAX];   /* what actions point to */
	struct message_placement viewed[VCFT_VM_MAX];  /* what the view points to */

	/* not cleared at the start: read only as far as written */
	struct message send[SENDS_MAX];
	struct message_holding holding[VCFT_HOST_MAX + 1][VCFT_VM_MAX];
};

/* ---- small things ---- */

struct epoch *epoch_new(struct host_id self)
{
	struct epoch *e = malloc(sizeof *e);
	MUST("E0", e && self.n >= 1 && self.n <= VCFT_HOST_MAX);
	memset(e, 0, offsetof(struct epoch, send));
	e->self = self;
	return e;
}

void epoch_free(struct epoch *e) { free(e); }

void epoch_remember(struct epoch *e, struct generation generation, struct generation seen)
{
	if (MUTANT(forget_promises))
		return;
	e->lived = generation;
	e->seen = generation_cmp(seen, generation) < 0 ? generation : seen;
}

static bool same_generation(struct generation a, struct generation b) { return generation_cmp(a, b) == 0; }
static bool later(struct generation a, struct generation b) { return generation_cmp(a, b) > 0; }
static bool is_joined(const struct epoch *e) { return e->state != EPOCH_EMPTY; }
static bool subset(host_mask part, host_mask whole) { return (part & ~whole) == 0; }
static bool makes_quorum(const struct epoch *e, host_mask hosts) { return host_count(hosts) >= e->needed; }
static nsec_t or_default(nsec_t given, nsec_t otherwise) { return given ? given : otherwise; }
static bool is_leader(const struct epoch *e) { return host_lowest(e->participants).n == e->self.n; }

static struct epoch_action *act(struct epoch *e, enum epoch_action_type type)
{
	MUST("E0", e->out_count < EPOCH_ACTIONS_MAX);
	struct epoch_action *a = &e->out[e->out_count++];
	*a = (struct epoch_action){ .type = type, .generation = e->seen, .hosts = e->participants };
	return a;
}

static void act_epoch(struct epoch *e, enum epoch_action_type type, struct epoch_id r) { act(e, type)->epoch = r; }

/* The head of the next message; the array is the caller's to fill. */
static struct message *say(struct epoch *e, enum message_type type)
{
	MUST("E0", e->send_count < SENDS_MAX);
	struct message *m = &e->send[e->send_count++];
	memset(m, 0, offsetof(struct message, placement));
	m->type = type;
	m->generation = e->seen;
	m->vm.n = VCFT_VM_MAX;
	act(e, EPOCH_ACT_SEND)->message = m;
	return m;
}

static void say_hello(struct epoch *e)
{
	struct epoch_action *a = act(e, EPOCH_ACT_HELLO);
	a->generation = e->lived;
	a->joined = is_joined(e);
}

static void remember(struct epoch *e)
{
	struct epoch_action *a = act(e, EPOCH_ACT_REMEMBER);
	a->generation = e->lived;
	a->seen = later(e->issued, e->seen) ? e->issued : e->seen;
}

static void invite(struct epoch *e, nsec_t now)
{
	act(e, EPOCH_ACT_INVITE)->generation = e->lived;
	e->invited_at = now;
}

/* A STATE without hosts tells no more than one generation of which this host is a participant and in which it has not lived. */
static void say_unlived(struct epoch *e)
{
	for (unsigned i = 0; i < e->unlived_count; i++) {
		struct message *m = say(e, MESSAGE_STATE);
		m->generation = e->unlived[i].generation;
		m->epoch = e->unlived[i].at;
	}
}

static void say_state(struct epoch *e, struct epoch_id committed, const struct message_holding *holdings, uint32_t count)
{
	struct message *m = say(e, MESSAGE_STATE);
	m->hosts = e->members;
	m->epoch = committed;
	m->vm_count = count < VCFT_VM_MAX ? count : VCFT_VM_MAX;
	if (count)
		memcpy(m->holding, holdings, m->vm_count * sizeof m->holding[0]);
}

static void report(struct epoch *e)
{
	e->reporting = true;
	act(e, EPOCH_ACT_REPORT)->report = ++e->report;
}

static void forget_statements(struct epoch *e, host_mask hosts)
{
	HOST_FOR(h, hosts) {
		e->of[h.n].stated = false;
		e->of[h.n].unlived_count = 0;
	}
	e->proposed = false;
}

/* The members of which f is true. */
static host_mask members_that(const struct epoch *e, bool (*f)(const struct member *))
{
	host_mask out = 0;
	HOST_FOR(h, e->members)
		if (f(&e->of[h.n]))
			out |= host_bit(h);
	return out;
}

static bool has_joined(const struct member *m) { return m->heard && m->joined; }
static bool is_empty(const struct member *m) { return m->heard && !m->joined; }
static bool lives_nowhere(const struct member *m) { return m->lived.n == 0; }
static bool has_stated(const struct member *m) { return m->heard && m->stated; }

/* ---- EMPTY and GATHER ---- */

static void become_empty(struct epoch *e)
{
	act(e, EPOCH_ACT_FORGET);
	e->state = EPOCH_EMPTY;
	e->invited = e->lost = e->reporting = e->was_protected = e->reading = false;
	e->participants = 0;
	e->begun = e->committed = e->applied = e->known = e->released = epoch_of(0);
	say_hello(e);
	say_state(e, EPOCH_UNKNOWN, NULL, 0);
}

/* E4: from here on STORED and KNOWN of this generation mean nothing to this host. */
static void gather(struct epoch *e)
{
	if (e->state != EPOCH_GATHER && e->state != EPOCH_EMPTY)
		act(e, EPOCH_ACT_FREEZE);
	e->state = EPOCH_GATHER;
	e->proposed = e->wanted = false;
	say_hello(e);
	report(e);
}

/* The agent starts to read it, which may take a while. */
static void on_config(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now, (void)in;
	if (e->reading)
		return;
	e->reading = true;
	e->read_lived = e->lived;
	e->read_seen = e->seen;
}

/* A start that a running cluster has overtaken while the configuration was read; or an invitation, in the middle of a recovery. */
static bool is_overtaken(const struct epoch *e, struct generation g)
{
	if (g.n == 0)
		return e->reading && (!same_generation(e->lived, e->read_lived) || !same_generation(e->seen, e->read_seen));
	return later(e->seen, g) && later(e->seen, e->lived);
}

static void on_configured(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	bool fresh = in->generation.n == 0, overtaken = is_overtaken(e, in->generation);
	struct generation lived = fresh || later(in->generation, e->lived) ? in->generation : e->lived;
	e->reading = false;
	if (overtaken) {   /* whoever runs will invite again */
		become_empty(e);
		return;
	}
	e->config = *in->config;
	memset(e->suspect, 0, sizeof e->suspect);
	memset(e->suspect_for, 0, sizeof e->suspect_for);
	memset(e->avoid, 0, sizeof e->avoid);
	memset(e->placement, 0, sizeof e->placement);
	memset(e->complete, 0, sizeof e->complete);
	e->lived = lived;
	if (!fresh)
		e->seen = lived;
	e->invited = e->newcomer = !fresh;
	e->unlived_count = 0;
	remember(e);
	gather(e);
}

/* A host that has not lived in the generation that it was rolled back for may have got streams of those that have: other epochs, by the same numbers. */
static void drop_foreign_stages(const struct epoch *e, struct message *m)
{
	for (uint32_t i = 0; i < m->vm_count; i++)
		if (!same_generation(e->lived, e->seen) && epoch_cmp(m->holding[i].staged, e->committed) > 0)
			m->holding[i].staged = epoch_of(0);
}

static void on_holdings(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	if (!e->reporting || (in->report && in->report != e->report))
		return;
	e->reporting = false;
	say_unlived(e);
	say_state(e, e->newcomer && !MUTANT(newcomer_knows) ? EPOCH_UNKNOWN : e->committed, in->holdings, in->count);
	drop_foreign_stages(e, &e->send[e->send_count - 1]);
}

/* ---- membership ---- */

static void lose_members(struct epoch *e, host_mask gone)
{
	HOST_FOR(h, gone) {
		struct member *m = &e->of[h.n];
		m->heard = m->joined = m->stated = false;
		m->lived = m->seen = m->taken = (struct generation){ 0 };
		m->count = 0;
	}
}

/* A membership that shrinks never makes a release easier: participants stay what they were, and without one of them it is over. */
static bool generation_is_over(const struct epoch *e)
{
	if (MUTANT(shrink_participants))
		return !e->quorate;
	return !e->quorate || !subset(e->participants, e->members) || (e->state == EPOCH_PLACING && !makes_quorum(e, e->electors));
}

static void on_membership(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	host_mask gone = e->members & ~in->hosts, came = in->hosts & ~e->members;
	e->members = in->hosts;
	e->quorate = in->quorate;
	e->needed = in->needed;
	e->electors &= e->members;
	if (MUTANT(shrink_participants))
		e->participants &= e->members;
	lose_members(e, gone);
	if (gone || came) {
		forget_statements(e, e->members);
		e->running = (struct generation){ 0 };
	}
	if (came)   /* all of them will say HELLO, to those that came and to those that stayed: so all count the same */
		HOST_FOR(h, e->members)
			e->of[h.n].heard = false;
	if (came && (e->state != EPOCH_GATHER))
		say_hello(e);
	if (e->state == EPOCH_EMPTY && (gone || came))
		say_state(e, EPOCH_UNKNOWN, NULL, 0);
	else if (e->state == EPOCH_GATHER ? gone || came : is_joined(e) && generation_is_over(e))
		gather(e);
}

static void on_hello(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	const struct message *m = in->message;
	struct member *from = &e->of[in->from.n];
	bool joined = m->hello.state == HELLO_JOINED;
	if (MUTANT(forget_by_number) && e->state == EPOCH_GATHER && joined && later(m->generation, e->lived)) {
		become_empty(e);
		return;
	}
	if (!from->heard || from->joined != joined || !same_generation(from->lived, m->generation)) {
		from->heard = true;
		from->joined = joined;
		from->lived = m->generation;
		forget_statements(e, host_bit(in->from));
	}
	if (!joined) {   /* it says so again: ask it again */
		from->taken = (struct generation){ 0 };
		e->proposed = false;
	}
	if (e->state == EPOCH_RUNNING && same_generation(m->generation, e->seen))
		e->live_here |= host_bit(in->from);
	if ((e->state == EPOCH_PLACING || e->state == EPOCH_RUNNING) && !joined && host_in(e->participants, in->from))
		gather(e);   /* it holds nothing any more: as good as lost */
	if (e->state == EPOCH_RUNNING && is_leader(e) && !joined)
		invite(e, now);
}

/* ---- a recovery: choosing what to go back to ---- */

/* A participant that has left this generation, by a loss of quorum that I did not see: it will not come back to it. My own STATE, if it comes now, is from
 * before the BEGIN that took me in: the others go by it, so an epoch that I committed alone behind it would be lost. */
static void on_state(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	const struct message *m = in->message;
	bool participant = host_in(e->participants, in->from);
	if (m->hosts != e->members)
		return;
	if (participant && (in->from.n != e->self.n || !MUTANT(stay_behind)) && !MUTANT(stay_alone) && same_generation(m->generation, e->seen))
		gather(e);
	if (e->state == EPOCH_RUNNING && is_leader(e) && e->of[in->from.n].joined && !participant)
		e->wanted = true;   /* the next BEGIN takes it in, or tells it that it is outdated */
}

/* Joined hosts whose images belong to generation w: they live there, or have been rolled back for it; or they have acted since on the same RECOVER as one of these. */
static host_mask lineage(const struct epoch *e, struct generation w)
{
	host_mask joined = members_that(e, has_joined), direct = 0, out = 0;
	HOST_FOR(h, joined)
		if (same_generation(e->of[h.n].lived, w) || same_generation(e->of[h.n].seen, w))
			direct |= host_bit(h);
	HOST_FOR(h, joined)
		HOST_FOR(x, direct)
			if (same_generation(e->of[h.n].seen, e->of[x.n].seen))
				out |= host_bit(h);
	return out | direct;
}

/* Joined hosts that have acted on RECOVERs since that for w, and are still at its checkpoint: all of them were to that one. */
static host_mask kept_for(const struct epoch *e, struct generation w)
{
	host_mask out = 0;
	HOST_FOR(h, members_that(e, has_joined)) {
		const struct member *m = &e->of[h.n];
		for (unsigned i = 0; i < m->unlived_count; i++)
			if (same_generation(m->unlived[i].generation, w) && later(w, m->lived) && m->unlived[i].at.n && epoch_cmp(m->unlived[i].at, m->committed) == 0)
				out |= host_bit(h);
	}
	return out;
}

/* E9: has generation g certainly released nothing, now and for ever? So if one of these hosts is a participant of it and does not live in it: a release needs its KNOWN. */
static bool never_released(const struct epoch *e, host_mask hosts, struct generation g)
{
	HOST_FOR(h, hosts)
		for (unsigned i = 0; i <= e->of[h.n].unlived_count; i++) {
			struct generation acted = i ? e->of[h.n].unlived[i - 1].generation : e->of[h.n].seen;
			if (same_generation(acted, g) && later(g, e->of[h.n].lived))
				return true;
		}
	return false;
}

/* The number that DOWN left has no leader: nothing has ever run by it. It keeps the old cluster from coming back, not a new one from starting. */
static bool is_of_down(struct generation g) { return (g.n & ((1u << EPOCH_LEADER_BITS) - 1)) == 0; }

static bool may_start_from(const struct epoch *e, struct generation w, host_mask hosts)
{
	HOST_FOR(h, e->members & ~hosts) {
		struct generation lived = e->of[h.n].lived;
		bool harmless = !later(lived, w) || (w.n == 0 && is_of_down(lived)) || never_released(e, hosts, lived);
		if (!harmless && !MUTANT(ignore_witness))
			return false;
	}
	return true;
}

/* E7 */
static bool is_usable(const struct message_holding *h, struct epoch_id c)
{
	if (MUTANT(use_incomplete_image))
		return h->image.n == c.n || h->staged.n == c.n;
	if (MUTANT(use_old_image))
		return h->complete.n > 0 && h->image.n > 0;
	return h->complete.n > 0 && epoch_cmp(h->complete, c) <= 0 && (epoch_cmp(h->image, c) == 0 || epoch_cmp(h->staged, c) == 0);
}

static bool place_at(const struct epoch *e, host_mask hosts, struct epoch_id c, struct message_placement *out, struct vm_id *ret_lost)
{
	host_mask usable[VCFT_VM_MAX] = { 0 };
	struct host_id live[VCFT_VM_MAX] = { 0 };
	HOST_FOR(h, hosts)
		for (uint32_t i = 0; i < e->of[h.n].count; i++) {
			const struct message_holding *held = &e->holding[h.n][i];
			if (held->live && live[held->vm.n].n == 0)
				live[held->vm.n] = h;
			if (is_usable(held, c))
				usable[held->vm.n] |= host_bit(h);
		}
	struct placement_input in = { e->config.vm_count, c, hosts, e->config.preferred, usable, live, e->avoid };
	return placement_recover(&in, out, ret_lost);
}

static bool is_newcomer(const struct member *m) { return epoch_cmp(m->committed, EPOCH_UNKNOWN) == 0; }
static bool knows_less(const struct member *m, struct epoch_id c) { return !is_newcomer(m) && epoch_cmp(m->committed, c) < 0; }

/* False: all are newcomers, nobody can say. */
static bool newest_committed(const struct epoch *e, host_mask hosts, struct epoch_id *ret_c)
{
	bool any = false;
	*ret_c = epoch_of(0);
	HOST_FOR(h, hosts)
		if (!is_newcomer(&e->of[h.n])) {
			any = true;
			*ret_c = epoch_cmp(e->of[h.n].committed, *ret_c) > 0 ? e->of[h.n].committed : *ret_c;
		}
	return any;
}

static struct epoch_id newest_staged(const struct epoch *e, host_mask hosts)
{
	struct epoch_id r = { 0 };
	HOST_FOR(h, hosts)
		for (uint32_t i = 0; i < e->of[h.n].count; i++)
			if (epoch_cmp(e->holding[h.n][i].staged, r) > 0)
				r = e->holding[h.n][i].staged;
	return r;
}

/* Forwards: an epoch of which every VM has a complete stage is a whole checkpoint, whether or not somebody is left who knows that it was committed. Not the
 * first choice: it may have fewer images. */
static bool choose_staged(const struct epoch *e, host_mask hosts, struct epoch_id newest, struct epoch_id *ret_c, struct message_placement *out)
{
	struct vm_id ignored;
	*ret_c = newest_staged(e, hosts);
	return epoch_cmp(*ret_c, newest) > 0 && place_at(e, hosts, *ret_c, out, &ignored);
}

/* Backwards: to the one before the newest, as told by a host that does not know the newest: it never said KNOWN for it, so nobody has applied or released
 * it; and it did say KNOWN for the one before, or BEGIN of the newest would not have come. */
static bool choose_before(const struct epoch *e, host_mask hosts, struct epoch_id newest, struct epoch_id *ret_c, struct message_placement *out)
{
	struct vm_id ignored;
	HOST_FOR(h, hosts)
		if (knows_less(&e->of[h.n], newest)) {
			*ret_c = e->of[h.n].committed;
			return place_at(e, hosts, *ret_c, out, &ignored);
		}
	return false;
}

/* E5 */
static bool choose_epoch(const struct epoch *e, host_mask hosts, struct epoch_id *ret_c, struct message_placement *out, struct vm_id *ret_lost)
{
	struct epoch_id newest;
	if (!newest_committed(e, hosts, &newest))
		return false;
	if (MUTANT(own_newest))
		newest = e->of[e->self.n].committed;
	*ret_c = newest;
	return place_at(e, hosts, newest, out, ret_lost) || choose_staged(e, hosts, newest, ret_c, out) || choose_before(e, hosts, newest, ret_c, out);
}

struct choice { host_mask hosts; struct epoch_id c; struct vm_id lost; };

static bool choose_from(const struct epoch *e, struct generation w, struct choice *out, struct message_placement *placement)
{
	host_mask kept = kept_for(e, w) & ~lineage(e, w);
	out->hosts = lineage(e, w);
	if (may_start_from(e, w, out->hosts) && choose_epoch(e, out->hosts, &out->c, placement, &out->lost))
		return true;
	out->hosts |= kept;
	if (!kept || !may_start_from(e, w, out->hosts) || !choose_epoch(e, out->hosts, &out->c, placement, &out->lost))
		return false;
	HOST_FOR(h, kept)
		if (epoch_cmp(e->of[h.n].committed, out->c) != 0)   /* what it has besides is of another generation */
			return false;
	return true;
}

/* Of all generations that members live in, the newest one first: one that it is safe to start from, and of which every VM is there. All members
 * choose the same; false: none, and lost says why. */
static bool choose(const struct epoch *e, struct choice *out, struct message_placement *placement)
{
	host_mask joined = members_that(e, has_joined), tried = 0;
	*out = (struct choice){ .lost = { VCFT_VM_MAX } };
	while (tried != joined) {
		struct generation w = { 0 };
		HOST_FOR(h, joined & ~tried)
			if (!later(w, e->of[h.n].lived))
				w = e->of[h.n].lived;
		HOST_FOR(h, joined)
			if (same_generation(e->of[h.n].lived, w))
				tried |= host_bit(h);
		if ((w.n != 0 || joined == e->members) && choose_from(e, w, out, placement))
			return true;
	}
	return false;
}

static struct generation newest_seen(const struct epoch *e)
{
	struct generation g = e->issued;
	HOST_FOR(h, e->members) {
		g = later(e->of[h.n].seen, g) ? e->of[h.n].seen : g;
		g = later(e->of[h.n].lived, g) ? e->of[h.n].lived : g;
	}
	return g;
}

/* The next one: counted on, and with the leader's id, so that no two RECOVERs have the same. */
static struct generation next_generation(const struct epoch *e)
{
	if (MUTANT(same_number))
		return (struct generation){ ((newest_seen(e).n >> EPOCH_LEADER_BITS) + 1) << EPOCH_LEADER_BITS };
	return (struct generation){ ((newest_seen(e).n >> EPOCH_LEADER_BITS) + 1) << EPOCH_LEADER_BITS | e->self.n };
}

/* A start from power-off waits for all members: they read the configuration, or have lost it, or live in a generation already. Taking part in a start they
 * forget that, so they are asked only if that generation can have released nothing. */
static void wait_for_all(struct epoch *e, nsec_t now, host_mask joined)
{
	if (host_lowest(joined).n != e->self.n)
		return;
	e->proposed = true;
	if (may_start_from(e, (struct generation){ 0 }, joined))
		invite(e, now);
	else
		say(e, MESSAGE_LOST);
}

/* Step 5. Everybody's HELLO and STATE are here; what the leader says now all can check. */
static void propose(struct epoch *e, nsec_t now)
{
	host_mask joined = members_that(e, has_joined);
	bool quorate = e->quorate || MUTANT(recover_without_quorum);
	if (e->state != EPOCH_GATHER || e->proposed || !quorate || members_that(e, has_stated) != e->members || !joined)
		return;
	if (joined != e->members && subset(joined, members_that(e, lives_nowhere))) {
		wait_for_all(e, now, joined);
		return;
	}
	struct choice choice;
	bool found = choose(e, &choice, e->shown);
	if (host_lowest(found ? choice.hosts : joined).n != e->self.n)
		return;
	MUST("E8", quorate);
	e->proposed = true;
	if (!found) {
		say(e, MESSAGE_LOST);
		return;
	}
	e->issued = next_generation(e);
	remember(e);
	struct message *m = say(e, MESSAGE_RECOVER);
	m->generation = e->issued;
	m->epoch = choice.c;
	m->hosts = choice.hosts;
	m->vm_count = e->config.vm_count;
	memcpy(m->placement, e->shown, m->vm_count * sizeof m->placement[0]);
}

static void on_lost(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now, (void)in;
	struct choice choice = { .lost = { VCFT_VM_MAX } };
	if (e->lost || (members_that(e, has_stated) == e->members && choose(e, &choice, e->shown)))
		return;
	e->lost = true;
	act(e, EPOCH_ACT_LOST)->vm = choice.lost;
}

/* ---- a recovery: placing and resuming ---- */

static void promise(struct epoch *e, struct generation g)
{
	e->seen = g;
	remember(e);
	say(e, MESSAGE_READY);
}

/* An empty host promises as well: it makes the quorum that later ones must meet (E9). */
static void on_recover_empty(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	if (!host_in(in->message->hosts, e->self))   /* else I have forgotten all meanwhile; my HELLO will tell */
		promise(e, in->message->generation);
}

static void show(struct epoch *e)
{
	for (uint32_t v = 0; v < e->config.vm_count; v++)
		e->viewed[v] = (struct message_placement){ e->placement[v].host, e->complete[v] };
}

static void take_placement(struct epoch *e, const struct message *m)
{
	memcpy(e->placement, m->placement, m->vm_count * sizeof m->placement[0]);
	memcpy(e->shown, m->placement, m->vm_count * sizeof m->placement[0]);
	e->with_vms = 0;
	for (uint32_t v = 0; v < m->vm_count; v++)
		e->with_vms |= host_bit(m->placement[v].host);
}

static void forget_known(struct epoch *e)
{
	for (uint32_t h = 1; h <= VCFT_HOST_MAX; h++)
		e->of[h].known = epoch_of(0);
}

/* Acting on a RECOVER to c: where that is what this host is at already, no byte of what it holds changes. */
static void note_unlived(struct epoch *e, struct epoch_id c)
{
	bool same = epoch_cmp(c, e->committed) == 0;
	for (unsigned i = 0; i < e->unlived_count && !same; i++)
		e->unlived[i].at = epoch_of(0);
	if (!later(e->seen, e->lived))
		return;
	if (e->unlived_count == UNLIVED_MAX)
		memmove(e->unlived, e->unlived + 1, --e->unlived_count * sizeof e->unlived[0]);
	e->unlived[e->unlived_count++] = (struct acted){ e->seen, same ? c : epoch_of(0) };
}

static void start_generation(struct epoch *e, const struct message *m)
{
	note_unlived(e, m->epoch);
	e->seen = m->generation;
	e->participants = m->hosts;
	e->electors = e->members;
	e->ready = e->live_here = 0;
	e->begun = e->committed = e->applied = m->epoch;
	e->known = epoch_of(m->epoch.n ? m->epoch.n - 1 : 0);
	e->aborted = e->answered = e->invited = e->newcomer = e->lost = e->reporting = false;
	e->resume_sent = e->begin_sent = e->abort_sent = e->proposed = false;
	take_placement(e, m);
	for (uint32_t v = 0; v < m->vm_count; v++) {
		e->complete[v] = m->placement[v].backups;
		e->suspect[v] = 0, e->suspect_for[v] = 0;   /* other members, other reasons */
	}
	show(e);
	forget_known(e);
}

static void on_recover(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	const struct message *m = in->message;
	if (!host_in(m->hosts, e->self)) {   /* E6: what it holds is of a generation that was not chosen */
		promise(e, m->generation);
		become_empty(e);
		return;
	}
	if (m->vm_count != e->config.vm_count)
		return;
	MUST("E5", epoch_cmp(e->released, m->epoch) <= 0);
	start_generation(e, m);
	e->state = EPOCH_PLACING;
	remember(e);
	struct epoch_action *a = act(e, EPOCH_ACT_PLACE);
	a->epoch = m->epoch;
	a->placement = e->shown;
}

static void on_placed(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	if (same_generation(in->generation, e->seen))
		say(e, MESSAGE_READY);
}

/* READY(0) is a question: say again who you are and what you hold. */
static void on_question(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	if (in->message->generation.n != 0 || in->from.n == e->self.n)
		return;
	say_hello(e);
	if (e->state == EPOCH_EMPTY)
		say_state(e, EPOCH_UNKNOWN, NULL, 0);
	else if (e->state == EPOCH_GATHER)
		report(e);
}

static bool waits_for_answers(const struct epoch *e)
{
	host_mask heard = members_that(e, has_joined) | members_that(e, is_empty);
	return heard != e->members || (e->state == EPOCH_GATHER && members_that(e, has_stated) != e->members);
}

/* Step 9. The group loses nothing; but a membership may be told to two hosts in different steps, and what one said between them the other has not counted. */
static void ask(struct epoch *e, nsec_t now)
{
	if (!waits_for_answers(e)) {
		e->waiting_since = now;
		return;
	}
	if (now - e->waiting_since < or_default(e->config.retry, ASK_AGAIN))
		return;
	e->waiting_since = now;
	say(e, MESSAGE_READY)->generation = (struct generation){ 0 };
	say_hello(e);
	if (e->state == EPOCH_EMPTY)
		say_state(e, EPOCH_UNKNOWN, NULL, 0);
	else if (e->state == EPOCH_GATHER)
		report(e);
}

static void on_ready(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	on_question(e, now, in);
	if (same_generation(in->message->generation, e->seen))
		e->ready |= host_bit(in->from) & e->electors;
}

/* Step 6 (E9). */
static void resume(struct epoch *e)
{
	if (e->state != EPOCH_PLACING || !is_leader(e) || e->resume_sent || !(e->quorate || MUTANT(recover_without_quorum)))
		return;
	if (!subset(e->participants, e->ready) && !MUTANT(resume_before_ready))
		return;
	if (!makes_quorum(e, e->ready) && !MUTANT(recover_without_quorum))
		return;
	e->resume_sent = true;
	say(e, MESSAGE_RESUME);
}

static void on_resume(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	if (!same_generation(in->message->generation, e->seen) || in->from.n != host_lowest(e->participants).n)
		return;
	e->state = EPOCH_RUNNING;
	e->lived = e->seen;
	e->unlived_count = 0;
	e->begun_at = now;
	e->due = now + e->config.interval;
	e->settled_at = e->committed.n && !e->config.hold_when_degraded ? now + or_default(e->config.settle, SETTLE) : now;
	remember(e);
	act_epoch(e, EPOCH_ACT_RUN, e->committed);
	if (MUTANT(release_at_resume))
		act_epoch(e, EPOCH_ACT_RELEASE, e->released = e->committed);
	say(e, MESSAGE_KNOWN)->epoch = e->committed;
}

/* E6. A host that was a participant and has left before the end is not outdated: its STATE makes the others follow it. And one that has acted on a later RECOVER hears
 * the echo of an earlier membership. */
static void on_resume_outside(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	if (later(in->message->generation, e->seen))
		become_empty(e);
}

/* An empty host has seen a generation live: the proof that older ones must not come back (E9). */
static void witness(struct epoch *e, struct generation g)
{
	if (later(e->seen, e->issued))
		e->issued = e->seen;   /* if it is taken back, its number stays used */
	e->lived = e->seen = g;
	remember(e);
	say_hello(e);
	say_state(e, EPOCH_UNKNOWN, NULL, 0);
}

static void on_resume_empty(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	struct generation g = in->message->generation;
	if (later(g, e->lived) && !later(e->seen, g))
		witness(e, g);
}

/* A BEGIN may be the echo of an earlier membership. A second one of the same generation was sent in this membership: its leader runs, with the quorum, here. */
static bool is_second_begin(struct epoch *e, struct generation g)
{
	bool second = same_generation(g, e->running);
	e->running = g;
	return second;
}

/* What this host has promised for a higher number than that of a generation that runs never came to a quorum, and never will: it can be taken back. */
static void on_begin_empty(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	struct generation g = in->message->generation, before = e->lived;
	bool second = is_second_begin(e, g);
	on_resume_empty(e, now, in);
	if (second && !(same_generation(g, e->lived) && same_generation(g, e->seen)))
		witness(e, g);
	else if (same_generation(before, e->lived) && host_in(in->message->hosts, e->self))
		say_state(e, EPOCH_UNKNOWN, NULL, 0);   /* sent before its sender saw that I lost my memory; it voids what I have said */
}

static void on_trouble(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	const struct message *m = in->message;
	host_mask heeded = e->state == EPOCH_PLACING ? e->participants | e->electors : e->participants;
	if (!same_generation(m->generation, e->seen) || !host_in(heeded, in->from))
		return;
	if (e->state == EPOCH_PLACING && m->vm.n < VCFT_VM_MAX)
		e->avoid[m->vm.n] |= host_bit(in->from);
	gather(e);
}

static void on_trouble_here(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	struct message *m = say(e, MESSAGE_TROUBLE);
	m->vm = in->vm;
	m->reason = in->reason;
}

/* ---- a checkpoint ---- */

static bool last_is_settled(const struct epoch *e)
{
	return e->aborted || epoch_cmp(MUTANT(begin_before_known) ? e->committed : e->known, e->begun) == 0;
}

/* E1 */
static bool is_valid_begin(const struct epoch *e, const struct epoch_event *in)
{
	const struct message *m = in->message;
	return same_generation(m->generation, e->seen) && in->from.n == host_lowest(e->participants).n &&
	       epoch_cmp(m->epoch, epoch_next(e->begun)) == 0 && last_is_settled(e) && m->vm_count == e->config.vm_count &&
	       subset(e->participants, m->hosts);
}

static void begin_epoch(struct epoch *e, nsec_t now, const struct message *m)
{
	if (e->aborted)
		act_epoch(e, EPOCH_ACT_DISCARD, e->begun);
	e->begun = m->epoch;
	e->begun_at = now;
	if (!e->begin_sent)   /* not mine: who begins it has its own pace */
		e->due = now + e->config.interval;
	e->aborted = e->answered = e->begin_sent = e->abort_sent = false;
	e->participants = m->hosts;
	e->stored = 0;
	memset(e->stored_complete, 0, m->vm_count * sizeof e->stored_complete[0]);
	take_placement(e, m);
	struct epoch_action *a = act(e, EPOCH_ACT_CAPTURE);
	a->epoch = m->epoch;
	a->placement = e->shown;
}

static void on_begin(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	const struct message *m = in->message;
	if (is_valid_begin(e, in))
		begin_epoch(e, now, m);
	else if (same_generation(m->generation, e->seen) && epoch_cmp(m->epoch, epoch_next(e->begun)) > 0)
		gather(e);   /* I have missed something that the others have not: start again, together */
}

/* A host that was invited becomes a participant. How the epochs before this one ended it need not know: it has no part of them. */
static void join_by_begin(struct epoch *e, nsec_t now, const struct message *m)
{
	e->state = EPOCH_RUNNING;
	e->invited = e->reporting = e->aborted = false;
	e->live_here = m->hosts;
	e->committed = e->applied = e->known = e->released = epoch_of(0);
	forget_known(e);
	begin_epoch(e, now, m);
}

static void on_begin_outside(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	const struct message *m = in->message;
	bool mine = same_generation(m->generation, e->lived), second = is_second_begin(e, m->generation);
	bool invited = e->invited && mine && host_in(m->hosts, e->self) && m->vm_count == e->config.vm_count && m->epoch.n > 0;
	if (invited)
		join_by_begin(e, now, m);
	else if (!mine && !host_in(m->hosts, e->self) && (later(m->generation, e->seen) || second))
		become_empty(e);
	else if (host_in(m->hosts, e->self))
		gather(e);   /* it voids what I have said */
}

static bool has_vms_here(const struct epoch *e) { return host_in(e->with_vms, e->self); }
static bool is_open(const struct epoch *e) { return !e->aborted && epoch_cmp(e->begun, e->committed) > 0; }

static void on_stored_here(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	if (epoch_cmp(in->epoch, e->begun) != 0 || !is_open(e) || e->answered || !has_vms_here(e))
		return;
	e->answered = true;
	struct message *m = say(e, MESSAGE_STORED);
	m->epoch = in->epoch;
	m->vm_count = in->count < VCFT_VM_MAX ? in->count : VCFT_VM_MAX;
	for (uint32_t i = 0; i < m->vm_count; i++) {
		m->stored[i].vm = in->stored[i].vm;
		m->stored[i].complete = in->stored[i].complete;
	}
	if (MUTANT(apply_before_commit))
		act_epoch(e, EPOCH_ACT_COMMIT, e->applied = e->begun);
}

/* After an ABORT of the same epoch by another host this one still tells of its backups that failed. */
static void on_not_stored(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	bool mine = epoch_cmp(in->epoch, e->begun) == 0 && is_open(e) && !e->answered;
	bool news = in->hosts && epoch_cmp(in->epoch, e->begun) <= 0 && epoch_cmp(in->epoch, e->committed) > 0;
	if (!mine && !(news && !(epoch_cmp(in->epoch, e->begun) == 0 && is_open(e))))
		return;
	if (mine)
		e->answered = true;
	struct message *m = say(e, MESSAGE_ABORT);
	m->epoch = in->epoch;
	m->vm = in->vm;
	m->hosts = in->hosts;
}

static void on_stored(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	const struct message *m = in->message;
	if (!same_generation(m->generation, e->seen) || epoch_cmp(m->epoch, e->begun) != 0 || !is_open(e))
		return;
	for (uint32_t i = 0; i < m->vm_count; i++) {
		uint32_t v = m->stored[i].vm.n;
		if (v < e->config.vm_count && e->placement[v].host.n == in->from.n)
			e->stored_complete[v] = m->stored[i].complete & e->placement[v].backups;
	}
	e->stored |= host_bit(in->from);
}

static void suspect(struct epoch *e, nsec_t now, struct vm_id vm, host_mask hosts)
{
	if (vm.n >= e->config.vm_count || !hosts)
		return;
	nsec_t last = e->suspect_for[vm.n], first = or_default(e->config.retry, RETRY);
	e->suspect[vm.n] |= hosts;
	e->suspect_for[vm.n] = last == 0 ? first : last < first << RETRY_DOUBLINGS ? 2 * last : last;
	e->suspect_until[vm.n] = now + e->suspect_for[vm.n];
}

static void on_abort(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	const struct message *m = in->message;
	if (!same_generation(m->generation, e->seen) || epoch_cmp(m->epoch, e->begun) > 0)
		return;
	suspect(e, now, m->vm, m->hosts);
	if (epoch_cmp(m->epoch, e->begun) == 0 && is_open(e) && !MUTANT(commit_after_abort))
		e->aborted = true;
}

static bool is_protected(const struct epoch *e)
{
	bool all = e->config.vm_count > 0;
	for (uint32_t v = 0; v < e->config.vm_count; v++)
		all = all && host_count(e->complete[v] & e->members) >= e->config.backups;
	return all;
}

/* E4 */
static bool may_commit(const struct epoch *e)
{
	return e->state == EPOCH_RUNNING || (MUTANT(commit_in_gather) && e->state == EPOCH_GATHER);
}

/* Step 2 (E2). */
static void commit(struct epoch *e)
{
	host_mask need = MUTANT(commit_at_own_stored) ? e->with_vms & host_bit(e->self) : e->with_vms;
	if (!may_commit(e) || epoch_cmp(e->begun, e->committed) <= 0 || !subset(need, e->stored) || e->stored == 0)
		return;
	if (e->aborted)
		return;
	e->committed = e->begun;
	e->out_of_patience = 0;
	for (uint32_t v = 0; v < e->config.vm_count; v++) {
		e->complete[v] = e->stored_complete[v];
		e->avoid[v] = 0;
		if (host_count(e->complete[v]) >= e->config.backups)
			e->suspect_for[v] = 0;
	}
	e->newcomer = false;
	e->was_protected = e->was_protected || is_protected(e);
	show(e);
	say(e, MESSAGE_KNOWN)->epoch = e->committed;
}

static void on_known(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	if (!same_generation(in->message->generation, e->seen))
		return;
	if (epoch_cmp(in->message->epoch, e->begun) > 0) {   /* I have missed a BEGIN that the others have not */
		gather(e);
		return;
	}
	e->live_here |= host_bit(in->from);
	if (epoch_cmp(in->message->epoch, e->of[in->from.n].known) > 0)
		e->of[in->from.n].known = in->message->epoch;
}

static bool known_by_all(const struct epoch *e)
{
	HOST_FOR(h, e->participants)
		if (epoch_cmp(e->of[h.n].known, e->committed) < 0)
			return false;
	return true;
}

/* Step 3 (E3). */
static void apply(struct epoch *e)
{
	if (!may_commit(e) || epoch_cmp(e->committed, e->known) <= 0 || !known_by_all(e))
		return;
	MUST("E2", epoch_cmp(e->committed, e->begun) == 0 && !e->aborted);
	e->known = e->committed;
	if (epoch_cmp(e->applied, e->committed) < 0)
		act_epoch(e, EPOCH_ACT_COMMIT, e->committed);
	e->applied = e->committed;
}

/* Step 4 (E3). The one place of the protocol that lets anything out. */
static void release(struct epoch *e)
{
	bool due = epoch_cmp(e->known, e->applied) == 0 && epoch_cmp(e->known, e->released) > 0;
	if (MUTANT(release_at_stored) && e->state == EPOCH_RUNNING && epoch_cmp(e->committed, e->released) > 0) {
		act_epoch(e, EPOCH_ACT_RELEASE, e->released = e->committed);
		return;
	}
	if (!may_commit(e) || !due)
		return;
	if (!makes_quorum(e, e->live_here) && !MUTANT(release_by_few))
		return;
	if (e->config.hold_when_degraded && e->was_protected && !is_protected(e) && !MUTANT(release_when_degraded))
		return;
	MUST("E3", epoch_cmp(e->known, e->committed) <= 0);
	e->released = e->known;
	act_epoch(e, EPOCH_ACT_RELEASE, e->released);
}

#define PATIENCE_DOUBLINGS 10u

static nsec_t patience(const struct epoch *e)
{
	return e->config.patience << (e->out_of_patience < PATIENCE_DOUBLINGS ? e->out_of_patience : PATIENCE_DOUBLINGS);
}

/* Step 7. */
static void give_up(struct epoch *e, nsec_t now)
{
	if (e->state != EPOCH_RUNNING || !is_leader(e) || !is_open(e) || e->abort_sent || e->config.patience == 0 ||
	    now - e->begun_at < patience(e))
		return;
	e->abort_sent = true;
	e->out_of_patience++;
	say(e, MESSAGE_ABORT)->epoch = e->begun;
}

/* Participants of the next epoch: those that are, and those that have joined this generation since, and said their STATE: behind BEGIN it would
 * look as if they had left. */
static host_mask next_participants(const struct epoch *e)
{
	host_mask out = e->participants;
	HOST_FOR(h, e->members)
		if (has_stated(&e->of[h.n]) && e->of[h.n].joined && same_generation(e->of[h.n].lived, e->seen))
			out |= host_bit(h);
	return out;
}

/* Step 8. Everybody's HELLO is here, or it would be dropped. */
static bool may_begin(const struct epoch *e)
{
	return e->state == EPOCH_RUNNING && is_leader(e) && e->quorate && !e->begin_sent && last_is_settled(e) &&
	       subset(e->participants, members_that(e, has_joined));
}

/* A BEGIN that comes a little late, for the group takes its time or the last epoch was not settled, makes the ones behind it no later. */
static nsec_t next_due(const struct epoch *e, nsec_t now)
{
	nsec_t late = now - e->due;
	return (late >= 0 && late < e->config.interval ? e->due : now) + e->config.interval;
}

static void begin(struct epoch *e, nsec_t now)
{
	if (!may_begin(e) || (!e->wanted && now < e->due))
		return;
	MUST("E8", e->quorate && subset(e->participants, e->members));
	e->begin_sent = true;
	e->wanted = false;
	e->due = next_due(e, now);
	if (members_that(e, is_empty) && now - e->invited_at >= INVITE_AGAIN)
		invite(e, now);
	struct message *m = say(e, MESSAGE_BEGIN);
	m->epoch = epoch_next(e->begun);
	m->hosts = next_participants(e);
	m->vm_count = e->config.vm_count;
	memcpy(m->placement, e->placement, m->vm_count * sizeof m->placement[0]);
	host_mask without[VCFT_VM_MAX];
	for (uint32_t v = 0; v < m->vm_count; v++) {
		e->suspect[v] = now >= e->suspect_until[v] ? 0 : e->suspect[v];
		without[v] = e->suspect[v] | (now < e->settled_at ? ~e->complete[v] : 0);
	}
	placement_backups(m->vm_count, e->config.backups, m->hosts, e->complete, without, m->placement);
}

static void on_checkpoint(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now, (void)in;
	e->wanted = is_leader(e);
}

/* ---- the end ---- */

static void on_down_here(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now, (void)in;
	say(e, MESSAGE_DOWN);
}

/* lived goes beyond all that was: a host that did not hear it cannot bring the cluster back. */
static void on_down(struct epoch *e, nsec_t now, const struct epoch_event *in)
{
	(void)now;
	struct generation g = in->message->generation;
	if (later(e->lived, g))
		return;
	uint64_t newest = later(g, e->seen) ? g.n : e->seen.n;
	e->lived.n = e->seen.n = ((newest >> EPOCH_LEADER_BITS) + 1) << EPOCH_LEADER_BITS;
	remember(e);
	become_empty(e);
}

/* ---- who has said what ----
 *
 * The STATEs that count are the same for all members, whatever state they are in: they depend on the members and on what has been delivered, and on nothing else. So all
 * agree whether a RECOVER or a BEGIN is valid. A STATE counts until its sender takes part in something that changes what it holds. */

/* What is said later counts. */
static void take_unlived(struct member *from, const struct message *m)
{
	unsigned i = 0;
	while (i < from->unlived_count && !same_generation(from->unlived[i].generation, m->generation))
		i++;
	if (i == UNLIVED_MAX)
		return;
	from->unlived[i] = (struct acted){ m->generation, m->epoch };
	from->unlived_count += i == from->unlived_count;
}

static void take_statement(struct epoch *e, const struct epoch_event *in)
{
	const struct message *m = in->message;
	struct member *from = &e->of[in->from.n];
	if (m->hosts == 0)
		take_unlived(from, m);
	if (m->hosts != e->members || later(from->taken, m->generation))
		return;
	size_t bytes = m->vm_count * sizeof m->holding[0];
	bool again = from->stated && same_generation(from->seen, m->generation) && epoch_cmp(from->committed, m->epoch) == 0 &&
	             from->count == m->vm_count && memcmp(e->holding[in->from.n], m->holding, bytes) == 0;
	e->proposed = e->proposed && again;
	from->stated = true;
	from->seen = m->generation;
	from->committed = m->epoch;
	from->count = m->vm_count;
	memcpy(e->holding[in->from.n], m->holding, bytes);
}

static bool is_valid_recover(const struct epoch *e, const struct epoch_event *in)
{
	const struct message *m = in->message;
	bool stated = subset(m->hosts, members_that(e, has_stated) & members_that(e, has_joined)) || MUTANT(any_recover);
	return later(m->generation, e->seen) && in->from.n == host_lowest(m->hosts).n && stated;
}

/* All drop a RECOVER of an earlier membership. But should I alone lack what makes it valid, or have acted on another one, nobody must wait for my READY, which it
 * needs also if I am no participant: they start again. */
static void refuse_recover(struct epoch *e, const struct message *m)
{
	bool waits = e->state == EPOCH_GATHER && host_in(m->hosts, e->self);
	if (later(m->generation, e->seen) && (waits || (e->state != EPOCH_RUNNING && !MUTANT(silent_witness))))
		say(e, MESSAGE_TROUBLE)->generation = m->generation;
}

/* False: the message is to be dropped. */
static bool follow_statements(struct epoch *e, const struct epoch_event *in)
{
	const struct message *m = in->message;
	if (m->type == MESSAGE_STATE)
		take_statement(e, in);
	if (m->type == MESSAGE_TROUBLE)
		e->of[in->from.n].taken = (struct generation){ 0 };   /* it may have refused that RECOVER */
	if (m->type == MESSAGE_RECOVER && !is_valid_recover(e, in)) {
		refuse_recover(e, m);
		return false;
	}
	if (m->type == MESSAGE_BEGIN && !subset(m->hosts, members_that(e, has_joined))) {   /* of an earlier membership: somebody has left, or come back empty */
		e->begin_sent = e->begin_sent && in->from.n != e->self.n;
		return false;
	}
	if (m->type == MESSAGE_RECOVER || m->type == MESSAGE_BEGIN)
		forget_statements(e, m->hosts);
	if (m->type == MESSAGE_RECOVER)
		HOST_FOR(h, m->hosts)
			e->of[h.n].taken = m->generation;
	return true;
}

/* ---- the table ---- */

enum input {
	IN_MEMBERSHIP, IN_CONFIGURED, IN_HOLDINGS, IN_STORED_HERE, IN_NOT_STORED, IN_PLACED, IN_TROUBLE_HERE, IN_CHECKPOINT, IN_DOWN_HERE,
	IN_HELLO, IN_CONFIG, IN_BEGIN, IN_STORED, IN_KNOWN, IN_ABORT, IN_TROUBLE, IN_STATE, IN_RECOVER, IN_READY, IN_RESUME, IN_LOST, IN_DOWN,
	IN_NOTHING,
};

typedef void (*handler)(struct epoch *, nsec_t, const struct epoch_event *);

/* Who handles an input in a state; empty: it is dropped there. */
static const handler table[][STATES] = {
	/*                    EMPTY              GATHER              PLACING           RUNNING */
	[IN_MEMBERSHIP]   = { on_membership,     on_membership,      on_membership,    on_membership },
	[IN_CONFIGURED]   = { on_configured,     NULL,               NULL,             NULL },
	[IN_HOLDINGS]     = { NULL,              on_holdings,        NULL,             NULL },
	[IN_STORED_HERE]  = { NULL,              NULL,               NULL,             on_stored_here },
	[IN_NOT_STORED]   = { NULL,              NULL,               NULL,             on_not_stored },
	[IN_PLACED]       = { NULL,              NULL,               on_placed,        NULL },
	[IN_TROUBLE_HERE] = { NULL,              NULL,               on_trouble_here,  on_trouble_here },
	[IN_CHECKPOINT]   = { NULL,              NULL,               NULL,             on_checkpoint },
	[IN_DOWN_HERE]    = { NULL,              on_down_here,       on_down_here,     on_down_here },
	[IN_HELLO]        = { on_hello,          on_hello,           on_hello,         on_hello },
	[IN_CONFIG]       = { on_config,         NULL,               NULL,             NULL },
	[IN_BEGIN]        = { on_begin_empty,    on_begin_outside,   NULL,             on_begin },
	[IN_STORED]       = { NULL,              NULL,               NULL,             on_stored },
	[IN_KNOWN]        = { NULL,              NULL,               NULL,             on_known },
	[IN_ABORT]        = { NULL,              NULL,               NULL,             on_abort },
	[IN_TROUBLE]      = { NULL,              NULL,               on_trouble,       on_trouble },
	[IN_STATE]        = { NULL,              NULL,               on_state,         on_state },
	[IN_RECOVER]      = { on_recover_empty,  on_recover,         NULL,             NULL },
	[IN_READY]        = { on_question,       on_question,        on_ready,         on_question },
	[IN_RESUME]       = { on_resume_empty,   on_resume_outside,  on_resume,        NULL },
	[IN_LOST]         = { NULL,              on_lost,            NULL,             NULL },
	[IN_DOWN]         = { NULL,              on_down,            on_down,          on_down },
};

static enum input input_of_message(enum message_type type)
{
	switch (type) {
	case MESSAGE_HELLO: return IN_HELLO;
	case MESSAGE_CONFIG: return IN_CONFIG;
	case MESSAGE_BEGIN: return IN_BEGIN;
	case MESSAGE_STORED: return IN_STORED;
	case MESSAGE_KNOWN: return IN_KNOWN;
	case MESSAGE_ABORT: return IN_ABORT;
	case MESSAGE_TROUBLE: return IN_TROUBLE;
	case MESSAGE_STATE: return IN_STATE;
	case MESSAGE_RECOVER: return IN_RECOVER;
	case MESSAGE_READY: return IN_READY;
	case MESSAGE_RESUME: return IN_RESUME;
	case MESSAGE_LOST: return IN_LOST;
	case MESSAGE_DOWN: return IN_DOWN;
	default: return IN_NOTHING;
	}
}

static enum input input_of(const struct epoch_event *in)
{
	switch (in->type) {
	case EPOCH_EV_TICK: return IN_NOTHING;
	case EPOCH_EV_MEMBERSHIP: return IN_MEMBERSHIP;
	case EPOCH_EV_MESSAGE: return input_of_message(in->message->type);
	case EPOCH_EV_CONFIGURED: return IN_CONFIGURED;
	case EPOCH_EV_HOLDINGS: return IN_HOLDINGS;
	case EPOCH_EV_STORED: return IN_STORED_HERE;
	case EPOCH_EV_NOT_STORED: return IN_NOT_STORED;
	case EPOCH_EV_PLACED: return IN_PLACED;
	case EPOCH_EV_TROUBLE: return IN_TROUBLE_HERE;
	case EPOCH_EV_CHECKPOINT: return IN_CHECKPOINT;
	case EPOCH_EV_DOWN: return IN_DOWN_HERE;
	}
	return IN_NOTHING;
}

size_t epoch_step(struct epoch *e, nsec_t now, const struct epoch_event *in, struct epoch_action out[static EPOCH_ACTIONS_MAX])
{
	enum input input = input_of(in);
	e->out = out;
	e->out_count = e->send_count = 0;
	if (in->type == EPOCH_EV_MESSAGE && (!host_in(e->members, in->from) || !follow_statements(e, in)))
		return e->out_count;
	if (input != IN_NOTHING && table[input][e->state])   /* 1 */
		table[input][e->state](e, now, in);
	else if (MUTANT(commit_in_gather) && e->state == EPOCH_GATHER && (input == IN_STORED || input == IN_KNOWN))
		table[input][EPOCH_RUNNING](e, now, in);
	commit(e);                                           /* 2 */
	apply(e);                                            /* 3 */
	release(e);                                          /* 4 */
	propose(e, now);                                     /* 5 */
	resume(e);                                           /* 6 */
	give_up(e, now);                                     /* 7 */
	begin(e, now);                                       /* 8 */
	ask(e, now);                                         /* 9 */
	return e->out_count;
}

nsec_t epoch_deadline(const struct epoch *e)
{
	nsec_t next = waits_for_answers(e) ? e->waiting_since + or_default(e->config.retry, ASK_AGAIN) : INT64_MAX;
	if (e->state != EPOCH_RUNNING || !is_leader(e) || !e->quorate)
		return next;
	if (is_open(e) && !e->abort_sent && e->config.patience && e->begun_at + patience(e) < next)
		next = e->begun_at + patience(e);
	if (may_begin(e) && e->due < next)
		next = e->due;
	return next;
}

void epoch_view(const struct epoch *e, struct epoch_view *ret_view)
{
	bool running = e->state == EPOCH_PLACING || e->state == EPOCH_RUNNING;
	*ret_view = (struct epoch_view){
		.state = e->state, .number = is_joined(e) ? e->seen : (struct generation){ 0 },
		.generation.n = is_joined(e) ? e->seen.n >> EPOCH_LEADER_BITS : 0, .begun = e->begun, .committed = e->committed,
		.released = e->released, .leader = host_lowest(running ? e->participants : members_that(e, has_joined)), .members = e->members,
		.participants = e->participants, .quorate = e->quorate, .protected_ = e->state == EPOCH_RUNNING && is_protected(e), .lost = e->lost,
		.vm_count = is_joined(e) ? e->config.vm_count : 0, .placement = e->viewed,
	};
}
