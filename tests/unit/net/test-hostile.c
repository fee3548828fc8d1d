/* test-hostile.c - rule N8: a guest, or a QEMU that was taken over, does to the switch what it can; the others go on and memory stays bounded.
 * (Forged addresses, runts and lengths that lie: test-port.c.) */
#include "base/clock.h"
#include "net-test.h"

#include <malloc.h>

#define TINY 14u                 /* the smallest frame */
#define BATCH 4000u              /* of them in one send(): 72 kB */
#define MIB (UINT64_C(1) << 20)

struct fixture { struct host *h; int vm[6]; };

static const struct net_limits small = { .port_bytes = 1 << 20 }, large = { .port_bytes = 256 << 20 };

/* VMs 1, 2, 3 on network 0; 4 and 5 on network 1; connected, generation 1, epoch 1. */
static void setup(struct fixture *f, gconstpointer limits)
{
	f->h = host_new(1, limits);
	host_network(f->h, 0);
	host_network(f->h, 1);
	for (unsigned v = 1; v <= 5; v++)
		host_vm(f->h, v, v >= 4);
	host_start(f->h, 1, 0);
	for (unsigned v = 1; v <= 5; v++)
		f->vm[v] = host_connect(f->h, v);
}

static void teardown(struct fixture *f, gconstpointer limits)
{
	(void)limits;
	for (unsigned v = 1; v <= 5; v++)
		close(f->vm[v]);
	host_free(f->h);
}

/* ---- floods ---- */

struct flood { GThread *thread; int fd, end; uint64_t frames; };

/* As many tiny broadcasts as the socket takes, many in one call, until told to end. */
static gpointer flood_run(gpointer data)
{
	struct flood *flood = data;
	g_autofree uint8_t *batch = g_malloc0(BATCH * (4 + TINY));
	for (unsigned i = 0; i < BATCH; i++) {
		uint8_t *at = batch + i * (4 + TINY);
		at[3] = TINY;
		memset(at + 4, 0xff, 6);
		mac_of(1, at + 10);
	}
	while (!g_atomic_int_get(&flood->end) && send(flood->fd, batch, BATCH * (4 + TINY), MSG_NOSIGNAL) == BATCH * (4 + TINY))
		flood->frames += BATCH;
	return NULL;
}

static void flood_start(struct flood *flood, int fd)
{
	*flood = (struct flood){ .fd = fd };
	flood->thread = g_thread_new("flood", flood_run, flood);
}

/* The number of frames that it has sent. */
static uint64_t flood_end(struct flood *flood)
{
	g_atomic_int_set(&flood->end, 1);
	g_thread_join(flood->thread);
	return flood->frames;
}

/* Nobody reads what one VM broadcasts: memory is bounded by the limits (and what the sockets hold), not by what it sends. */
static void test_n8_memory(struct fixture *f, gconstpointer limits)
{
	(void)limits;
	struct flood flood;
	uint64_t before = mallinfo2().uordblks;
	flood_start(&flood, f->vm[1]);
	host_settle(f->h, 400000);
	uint64_t sent = flood_end(&flood);
	host_settle(f->h, sent);
	uint64_t grown = mallinfo2().uordblks - before;
	g_test_message("%" PRIu64 " frames, %" PRIu64 " KiB", sent, grown >> 10);
	g_assert_cmpuint(sent * 200, >, 64 * MIB); /* even a fifth of what such a frame takes would be more than is allowed */
	g_assert_cmpuint(grown, <, 32 * MIB);
	g_assert_cmpuint(host_stats(f->h).dropped, >, 0);
}

/* While one floods its network, another network goes on; and the checkpoints of all do. */
static void test_n8_others_go_on(struct fixture *f, gconstpointer limits)
{
	(void)limits;
	struct flood flood;
	nsec_t most = 0;
	flood_start(&flood, f->vm[1]);
	host_settle(f->h, 100000);
	for (uint32_t r = 1; r <= 40; r++) {
		for (unsigned v = 1; v <= 5; v++) {
			nsec_t start = clock_now();
			host_cut(f->h, v, r);
			most = MAX(most, clock_now() - start);
		}
		net_marker(f->h->net, epoch_of(r), 0);
		HOST_WAIT(f->h, f->h->complete == r);
		for (unsigned v = 1; v <= 5; v++) {
			g_autoptr(GBytes) record = net_take_record(f->h->net, (struct vm_id){ v }, epoch_of(r));
			g_assert_nonnull(record);
		}
		vm_send(f->vm[4], 4, 5, r);
		vm_expect(f->vm[5], 4, r);
		vm_send(f->vm[5], 5, 4, r);
		vm_expect(f->vm[4], 5, r);
	}
	uint64_t sent = flood_end(&flood);
	g_test_message("%" PRIu64 " frames, longest cut %" PRIi64 " us", sent, most / NSEC_PER_USEC);
}

/* What one VM has filled a third one's queue with leaves room for the second. */
static void test_n8_share(struct fixture *f, gconstpointer limits)
{
	(void)limits;
	enum { N = 4000 };
	struct test_frame *t = g_new(struct test_frame, 1);
	frame_fill(t, 1, 3, 0, 1500);
	for (uint32_t i = 0; i < N; i++)
		vm_send_frame(f->vm[1], t);
	host_settle(f->h, N);
	uint64_t dropped = host_stats(f->h).dropped;
	g_assert_cmpuint(dropped, >, 0);
	vm_send(f->vm[2], 2, 3, 7);
	host_settle(f->h, N + 1);
	g_assert_cmpuint(host_stats(f->h).dropped, ==, dropped);
	for (uint64_t i = 0; i < N - dropped; i++)
		vm_receive(f->vm[3], t);
	vm_expect(f->vm[3], 2, 7);
	g_free(t);
}

/* A backlog larger than any record: what is too much is dropped, and the record can be taken. Else a guest could have every checkpoint refused. */
static void test_n8_record(struct fixture *f, gconstpointer limits)
{
	(void)limits;
	enum { N = 1200 };
	struct test_frame *t = g_new(struct test_frame, 1);
	frame_fill(t, 1, 3, 0, VCFT_FRAME_MAX);
	for (uint32_t i = 0; i < N; i++) /* 75 MiB */
		vm_send_frame(f->vm[1], t);
	host_settle(f->h, N);
	g_assert_cmpuint(host_stats(f->h).dropped, ==, 0);
	for (unsigned v = 1; v <= 5; v++)
		host_cut(f->h, v, 1);
	net_marker(f->h->net, epoch_of(1), 0);
	g_autoptr(GBytes) record = net_take_record(f->h->net, (struct vm_id){ 3 }, epoch_of(1));
	g_assert_nonnull(record);
	uint64_t dropped = host_stats(f->h).dropped;
	g_assert_cmpuint(dropped, >, 0);
	g_assert_cmpuint(read_u32(g_bytes_get_data(record, NULL)), ==, N - dropped);
	for (uint64_t i = 0; i < N - dropped; i++) /* what was dropped is not delivered either (P2) */
		vm_receive(f->vm[3], t);
	vm_send(f->vm[2], 2, 3, 7);
	vm_expect(f->vm[3], 2, 7);
	g_free(t);
}

/* Connections that come and go, with lengths that lie: the owner is told once a second at most. */
static void test_n8_notes(struct fixture *f, gconstpointer limits)
{
	(void)limits;
	enum { N = 200 };
	static const uint8_t lie[4] = { 0xff, 0xff, 0xff, 0xff };
	nsec_t start = clock_now();
	for (unsigned i = 0; i < N; i++) {
		vm_send_bytes(f->vm[1], lie, sizeof lie);
		vm_expect_closed(f->vm[1]);
		close(f->vm[1]);
		f->vm[1] = host_connect(f->h, 1);
	}
	vm_send(f->vm[1], 1, 2, 5);
	vm_expect(f->vm[2], 1, 5);
	g_assert_cmpuint(HOST_GET(f->h, f->h->notes), <=, 1 + (clock_now() - start) / NSEC_PER_SEC);
}

#define ADD(name, function, data) g_test_add("/net/hostile/" name, struct fixture, data, setup, function, teardown)

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	ADD("N8-memory", test_n8_memory, &small);
	ADD("N8-others-go-on", test_n8_others_go_on, &small);
	ADD("N8-share", test_n8_share, &small);
	ADD("N8-record", test_n8_record, &large);
	ADD("N8-notes", test_n8_notes, NULL);
	return g_test_run();
}
