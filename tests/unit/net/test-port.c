/* test-port.c - one host: forwarding (N2 N3), the cut rule at the port (P1 N1), records and what is unread (N4 N6), generations, limits. */
#include "net-test.h"

struct fixture { struct host *h; int vm[5]; };

/* VMs 1, 2, 3 on network 0 and 4 on network 1, connected, in generation 1, epoch 1. */
static void setup_with(struct fixture *f, const struct net_limits *limits)
{
	f->h = host_new(1, limits);
	host_network(f->h, 0);
	host_network(f->h, 1);
	for (unsigned v = 1; v <= 4; v++)
		host_vm(f->h, v, v == 4 ? 1 : 0);
	net_rollback(f->h->net, (struct generation){ 1 }, epoch_of(0));
	for (unsigned v = 1; v <= 4; v++)
		f->vm[v] = host_connect(f->h, v);
	net_run(f->h->net);
}

static void setup(struct fixture *f, gconstpointer data) { setup_with(f, data); }

static void setup_plain(struct fixture *f, gconstpointer data)
{
	(void)data;
	setup_with(f, NULL);
}

static void teardown(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (unsigned v = 1; v <= 4; v++)
		close(f->vm[v]);
	host_free(f->h);
}

/* ---- forwarding ---- */

static void test_unicast(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (uint32_t i = 0; i < 10; i++)
		vm_send(f->vm[1], 1, 2, i);
	for (uint32_t i = 0; i < 10; i++)
		vm_expect(f->vm[2], 1, i);
	vm_expect_nothing(f->vm[3]);
	vm_expect_nothing(f->vm[1]);
}

static void test_broadcast(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send(f->vm[1], 1, BROADCAST, 7);
	vm_expect(f->vm[2], 1, 7);
	vm_expect(f->vm[3], 1, 7);
	vm_expect_nothing(f->vm[1]);
	vm_expect_nothing(f->vm[4]); /* another network */
}

/* N3: an address that is no NIC's is no VM's either: it could be the gateway's. */
static void test_n3_not_its_own(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send(f->vm[1], 1, 900, 1);
	vm_expect(f->vm[2], 1, 1); /* unknown: flooded */
	vm_expect(f->vm[3], 1, 1);
	vm_send(f->vm[3], 900, 1, 2);
	host_settle(f->h, 2);
	vm_expect_nothing(f->vm[1]);
	vm_send(f->vm[1], 1, 900, 3); /* and still is */
	vm_expect(f->vm[2], 1, 3);
	vm_expect(f->vm[3], 1, 3);
	g_assert_cmpuint(host_stats(f->h).forged, ==, 1);
	g_assert_cmpuint(host_stats(f->h).dropped, ==, 1);
}

static void test_n3_forged(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send(f->vm[3], 2, 1, 1); /* VM 3 says that it is VM 2 */
	host_settle(f->h, 1);
	vm_expect_nothing(f->vm[1]);
	vm_send(f->vm[1], 1, 2, 2); /* and has not drawn its frames to itself */
	vm_expect(f->vm[2], 1, 2);
	vm_expect_nothing(f->vm[3]);
	g_assert_cmpuint(host_stats(f->h).dropped, ==, 1);
}

static void test_n3_placed_elsewhere(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_place(f->h, 9, 0, 2);
	vm_send(f->vm[3], 9, 1, 1);
	vm_send(f->vm[1], 1, 9, 2); /* no such host: dropped, not flooded */
	host_settle(f->h, 2);
	vm_expect_nothing(f->vm[1]);
	vm_expect_nothing(f->vm[2]);
	vm_expect_nothing(f->vm[3]);
	g_assert_cmpuint(host_stats(f->h).dropped, ==, 2);
}

static void test_short_frames(struct fixture *f, gconstpointer data)
{
	(void)data;
	struct test_frame *t = g_new0(struct test_frame, 1);
	t->size = 13;
	vm_send_frame(f->vm[1], t);
	host_settle(f->h, 1);
	vm_send(f->vm[1], 1, 2, 5);
	vm_expect(f->vm[2], 1, 5);
	g_free(t);
}

/* Frames of the largest size, in pieces, go through whole. */
static void test_large_frames(struct fixture *f, gconstpointer data)
{
	(void)data;
	struct test_frame *t = g_new(struct test_frame, 1), *u = g_new(struct test_frame, 1);
	frame_fill(t, 1, 2, 77, VCFT_FRAME_MAX);
	vm_send_frame(f->vm[1], t);
	vm_receive(f->vm[2], u);
	g_assert_cmpmem(t->bytes, t->size, u->bytes, u->size);
	g_free(t);
	g_free(u);
}

static void test_bad_length(struct fixture *f, gconstpointer data)
{
	vm_send_bytes(f->vm[1], data, 4);
	vm_expect_closed(f->vm[1]);
	HOST_WAIT(f->h, f->h->notes == 1);
	close(f->vm[1]);
	f->vm[1] = host_connect(f->h, 1);
	vm_send(f->vm[1], 1, 2, 5);
	vm_expect(f->vm[2], 1, 5);
}

/* A second connection waits until the first is gone. */
static void test_spare(struct fixture *f, gconstpointer data)
{
	(void)data;
	int spare = host_connect(f->h, 2);
	vm_send(f->vm[1], 1, 2, 1);
	vm_expect(f->vm[2], 1, 1);
	vm_expect_nothing(spare);
	close(f->vm[2]);
	f->vm[2] = spare;
	vm_send(spare, 2, 1, 2);
	vm_expect(f->vm[1], 2, 2);
	vm_send(f->vm[1], 1, 2, 3);
	vm_expect(spare, 1, 3);
}

/* ---- the cut ---- */

/* P1: a frame that was sent after its sender's cut is not delivered before the receiver's. */
static void test_p1_newer_held(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_cut(f->h, 1, 1);
	vm_send(f->vm[1], 1, 2, 1);
	vm_send(f->vm[1], 1, 2, 2);
	host_settle(f->h, 2);
	vm_expect_nothing(f->vm[2]);
	host_cut(f->h, 2, 1);
	vm_expect(f->vm[2], 1, 1);
	vm_expect(f->vm[2], 1, 2);
	host_cut(f->h, 3, 1);
	host_cut(f->h, 4, 1);
	net_marker(f->h->net, epoch_of(1), 0);
	HOST_WAIT(f->h, f->h->complete == 1);
	record_expect(f->h, 2, 1, 0, 0, NULL); /* of the next epoch: not in the record */
}

/* N4: of the held frames only those of the new epoch are let go. */
static void test_n4_held_stays(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_cut(f->h, 1, 1);
	vm_send(f->vm[1], 1, 2, 1);
	host_settle(f->h, 1);
	host_cut(f->h, 1, 2);
	vm_send(f->vm[1], 1, 2, 2);
	host_settle(f->h, 2);
	host_cut(f->h, 2, 1);
	vm_expect(f->vm[2], 1, 1);
	vm_expect_nothing(f->vm[2]);
	host_cut(f->h, 2, 2);
	vm_expect(f->vm[2], 1, 2);
}

/* P2: a frame that was sent before its sender's cut and comes after the receiver's is delivered, and is in the record. */
static void test_p2_older_recorded(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_cut(f->h, 2, 1);
	vm_send(f->vm[1], 1, 2, 1);
	vm_send(f->vm[1], 1, 2, 2);
	vm_expect(f->vm[2], 1, 1);
	vm_expect(f->vm[2], 1, 2);
	for (unsigned v = 1; v <= 4; v++)
		if (v != 2)
			host_cut(f->h, v, 1);
	net_marker(f->h->net, epoch_of(1), 0);
	HOST_WAIT(f->h, f->h->complete == 1);
	record_expect(f->h, 2, 1, 1, 2, (uint32_t[]){ 1, 2 });
	record_expect(f->h, 1, 1, 1, 0, NULL);
	g_assert_null(net_take_record(f->h->net, (struct vm_id){ 2 }, epoch_of(1))); /* once */
}

/* N1, N4: what the VM had sent when it was stopped, but the switch had not read, has the colour of the epoch that ends. */
static void test_n4_read_out(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (int round = 0; round < 50; round++) {
		uint64_t r = (uint64_t)round + 1;
		host_cut(f->h, 2, r);
		for (uint32_t i = 0; i < 20; i++)
			vm_send(f->vm[1], 1, 2, i); /* some of them are still in the socket */
		host_cut(f->h, 1, r);
		uint32_t numbers[20];
		for (uint32_t i = 0; i < 20; i++)
			vm_expect(f->vm[2], 1, numbers[i] = i);
		host_cut(f->h, 3, r);
		host_cut(f->h, 4, r);
		net_marker(f->h->net, epoch_of(r), 0);
		HOST_WAIT(f->h, f->h->complete == r);
		record_expect(f->h, 2, r, 1, 20, numbers);
	}
}

/* N4: the VM may have connected and sent while the switch was busy with others: its frames are of the epoch that ends all the same. */
static void test_n4_just_connected(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (uint64_t r = 1; r <= 100; r++) {
		close(f->vm[1]);
		host_cut(f->h, 2, r);
		for (uint32_t i = 0; i < 30; i++)
			vm_send(f->vm[3], 3, 3, i);
		f->vm[1] = host_connect(f->h, 1);
		vm_send(f->vm[1], 1, 2, 7);
		host_cut(f->h, 1, r);
		vm_expect(f->vm[2], 1, 7);
		host_cut(f->h, 3, r);
		host_cut(f->h, 4, r);
		net_marker(f->h->net, epoch_of(r), 0);
		HOST_WAIT(f->h, f->h->complete == r);
		record_expect(f->h, 2, r, 1, 1, (uint32_t[]){ 7 });
	}
}

static void cut_all(struct fixture *f, uint64_t r)
{
	for (unsigned v = 1; v <= 4; v++)
		host_cut(f->h, v, r);
	net_marker(f->h->net, epoch_of(r), 0);
	HOST_WAIT(f->h, f->h->complete == r);
}

/* N4: exactly the frames that the VM has not wholly read are in the record, and they are not sent again. */
static void test_n4_unread(struct fixture *f, gconstpointer data)
{
	(void)data;
	uint32_t numbers[10];
	for (uint32_t i = 0; i < 10; i++)
		vm_send(f->vm[1], 1, 2, numbers[i] = i);
	host_settle(f->h, 10);
	for (uint32_t i = 0; i < 4; i++)
		vm_expect(f->vm[2], 1, i);
	cut_all(f, 1);
	record_expect(f->h, 2, 1, 1, 6, numbers + 4);
	for (uint32_t i = 4; i < 10; i++)
		vm_expect(f->vm[2], 1, i);
	vm_expect_nothing(f->vm[2]);
	cut_all(f, 2);
	record_expect(f->h, 2, 2, 1, 0, NULL);
}

/* N4: half a frame read is a frame unread. */
static void test_n4_half_read(struct fixture *f, gconstpointer data)
{
	(void)data;
	uint8_t half[4 + 20];
	for (uint32_t i = 0; i < 3; i++)
		vm_send(f->vm[1], 1, 2, i);
	host_settle(f->h, 3);
	vm_expect(f->vm[2], 1, 0);
	read_all(f->vm[2], half, sizeof half);
	cut_all(f, 1);
	record_expect(f->h, 2, 1, 1, 2, (uint32_t[]){ 1, 2 });
	uint8_t rest[64 - 20];
	read_all(f->vm[2], rest, sizeof rest); /* live, the other half comes as ever */
	vm_expect(f->vm[2], 1, 2);
}

/* N4 with every size of frame: the oracle is the reader's own count of unread bytes. */
static void test_n4_unread_sizes(struct fixture *f, gconstpointer data)
{
	(void)data;
	struct test_frame *t = g_new(struct test_frame, 1);
	g_autoptr(GRand) rand = g_rand_new_with_seed(4711);
	uint64_t sent = 0;
	for (uint64_t r = 1; r <= 60; r++) {
		unsigned n = (unsigned)g_rand_int_range(rand, 1, 24), eaten = (unsigned)g_rand_int_range(rand, 0, (gint)n + 1);
		uint32_t numbers[24];
		for (uint32_t i = 0; i < n; i++) {
			size_t size = r % 4 ? (size_t)g_rand_int_range(rand, 20, 1515) : (size_t)g_rand_int_range(rand, 20, 40000);
			frame_fill(t, 1, 2, numbers[i] = i, size);
			vm_send_frame(f->vm[1], t);
		}
		host_settle(f->h, sent += n);
		for (unsigned i = 0; i < eaten; i++)
			vm_receive(f->vm[2], t);
		cut_all(f, r);
		record_expect(f->h, 2, r, 1, n - eaten, numbers + eaten);
		for (unsigned i = eaten; i < n; i++)
			vm_receive(f->vm[2], t);
	}
	g_free(t);
}

/* ---- the gate ---- */

static gpointer close_gate(gpointer data)
{
	g_assert_true(net_gate(((struct host *)data)->net, (struct vm_id){ 2 }));
	return NULL;
}

/* All that the VM is given from now on until the probe: closes the gate of VM 2 meanwhile. */
static void read_until_gated(struct fixture *f, uint32_t first, uint32_t end)
{
	GThread *thread = g_thread_new("gate", close_gate, f->h);
	for (uint32_t i = first; i < end; i++)
		vm_expect(f->vm[2], 1, i);
	uint8_t probe = 1;
	read_all(f->vm[2], &probe, 1);
	g_assert_cmpuint(probe, ==, 0);
	g_thread_join(thread);
}

/* The frame whose first byte has been read as a probe. */
static void expect_behind_probe(int fd, uint32_t number)
{
	uint8_t rest[3 + 64];
	read_all(fd, rest, sizeof rest);
	g_assert_cmpuint(rest[2], ==, 64);
	g_assert_cmpuint(frame_number(rest + 3), ==, number);
}

/* N9 (1): however much is there, one read gives one frame: QEMU never holds more than one that its guest has no room for. */
static void test_n9_a_frame_a_read(struct fixture *f, gconstpointer data)
{
	(void)data;
	static uint8_t room[1 << 20];
	for (uint32_t i = 0; i < 20; i++)
		vm_send(f->vm[1], 1, 2, i);
	host_settle(f->h, 20);
	for (uint32_t i = 0; i < 20; i++) {
		g_assert_cmpint(read(f->vm[2], room, sizeof room), ==, 4 + 64);
		g_assert_cmpuint(frame_number(room + 4), ==, i);
	}
	struct test_frame *t = g_new(struct test_frame, 1);
	for (uint32_t i = 0; i < 2; i++) {
		frame_fill(t, 1, 2, i, VCFT_FRAME_MAX);
		vm_send_frame(f->vm[1], t);
	}
	for (size_t left = 4 + VCFT_FRAME_MAX; left;) {   /* of the two large ones no read has more than the first */
		ssize_t n = read(f->vm[2], room, sizeof room);
		g_assert_cmpint(n, <=, left);
		left -= (size_t)n;
	}
	vm_receive(f->vm[2], t);
	g_assert_cmpuint(frame_number(t->bytes), ==, 1);
	g_free(t);
}

/* N9 (2) (3): what came before the gate has been read, what came after is in flight, in order and once. */
static void test_n9_gate(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (uint64_t r = 1; r <= 20; r++) {
		for (uint32_t i = 0; i < 5; i++)
			vm_send(f->vm[1], 1, 2, i);
		host_settle(f->h, (r - 1) * 8 + 5);
		read_until_gated(f, 0, 5);
		for (uint32_t i = 5; i < 8; i++)
			vm_send(f->vm[1], 1, 2, i);
		host_settle(f->h, r * 8);
		vm_expect_nothing(f->vm[2]);
		cut_all(f, r);
		record_expect(f->h, 2, r, 1, 3, (uint32_t[]){ 5, 6, 7 });
		expect_behind_probe(f->vm[2], 5);
		vm_expect(f->vm[2], 1, 6);
		vm_expect(f->vm[2], 1, 7);
	}
}

/* Four frames to VM 2, which reads two of them and then nothing, as one that has been kept from running or whose ring is full. */
static void leave_two_unread(struct fixture *f, uint64_t r)
{
	for (uint32_t i = 0; i < 4; i++)
		vm_send(f->vm[1], 1, 2, i);
	host_settle(f->h, r * 6 - 2);
	for (uint32_t i = 0; i < 2; i++)
		vm_expect(f->vm[2], 1, i);
	g_assert_false(net_gate(f->h->net, (struct vm_id){ 2 }));
}

/* N9 (4): of one that did not run nothing is said to be held: what it has read is in the guest, and is not sent again. */
static void test_n9_did_not_run(struct fixture *f, gconstpointer data)
{
	(void)data;
	leave_two_unread(f, 1);
	vm_expect(f->vm[2], 1, 2); /* it goes on */
	g_assert_false(net_gate_stuck(f->h->net, (struct vm_id){ 2 }, true, &f->vm[2]));
	cut_all(f, 1);
	record_expect(f->h, 2, 1, 1, 1, (uint32_t[]){ 3 });
	vm_expect(f->vm[2], 1, 3);
	vm_send(f->vm[1], 1, 2, 4);
	vm_expect(f->vm[2], 1, 4);
	vm_expect_nothing(f->vm[2]);
}

/* N9 (4) (5): who has read a frame, runs, and asks for no more, holds it in vain: it is recorded, and sent again in front of the others. */
static void test_n9_keeps_one(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (uint64_t r = 1; r <= 2; r++) {
		leave_two_unread(f, r);
		g_assert_true(net_gate_stuck(f->h->net, (struct vm_id){ 2 }, true, &f->vm[2]));
		vm_send(f->vm[1], 1, 2, 4);
		host_settle(f->h, r * 6 - 1);
		cut_all(f, r);
		record_expect(f->h, 2, r, 1, 4, (uint32_t[]){ 1, 2, 3, 4 });
		vm_send(f->vm[1], 1, 2, 5);
		for (uint32_t i = 1; i <= 5; i++)
			vm_expect(f->vm[2], 1, i);
		vm_expect_nothing(f->vm[2]);
	}
}

/* The same of frames that fill the socket, the last one in part. */
static void test_n9_keeps_a_large_one(struct fixture *f, gconstpointer data)
{
	(void)data;
	struct test_frame *t = g_new(struct test_frame, 1);
	for (uint32_t i = 0; i < 12; i++) {
		frame_fill(t, 1, 2, i, 40000);
		vm_send_frame(f->vm[1], t);
	}
	host_settle(f->h, 12);
	vm_receive(f->vm[2], t);
	g_assert_false(net_gate(f->h->net, (struct vm_id){ 2 }));
	g_assert_true(net_gate_stuck(f->h->net, (struct vm_id){ 2 }, true, &f->vm[2]));
	cut_all(f, 1);
	record_expect(f->h, 2, 1, 1, 12, (uint32_t[]){ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 });
	for (uint32_t i = 0; i < 12; i++) {
		vm_receive(f->vm[2], t);
		g_assert_cmpuint(t->size, ==, 40000);
		g_assert_cmpuint(frame_number(t->bytes), ==, i);
	}
	vm_expect_nothing(f->vm[2]);
	g_free(t);
}

/* N9 (5): where QEMU may read it comes behind the others. */
static void test_n9_keeps_one_and_reads(struct fixture *f, gconstpointer data)
{
	(void)data;
	leave_two_unread(f, 1);
	g_assert_true(net_gate_stuck(f->h->net, (struct vm_id){ 2 }, true, NULL));
	cut_all(f, 1);
	record_expect(f->h, 2, 1, 1, 3, (uint32_t[]){ 1, 2, 3 });
	vm_expect(f->vm[2], 1, 2);
	vm_expect(f->vm[2], 1, 3);
	vm_expect(f->vm[2], 1, 1);
	vm_send(f->vm[1], 1, 2, 4);
	vm_expect(f->vm[2], 1, 4);
	vm_expect_nothing(f->vm[2]);
}

/* N9: of a VM that stands still already (its disk is full) QEMU throws nothing away: the frame is recorded, and not sent again. */
static void test_n9_stands_still(struct fixture *f, gconstpointer data)
{
	(void)data;
	leave_two_unread(f, 1);
	g_assert_true(net_gate_stuck(f->h->net, (struct vm_id){ 2 }, false, &f->vm[2]));
	cut_all(f, 1);
	record_expect(f->h, 2, 1, 1, 3, (uint32_t[]){ 1, 2, 3 });
	vm_expect(f->vm[2], 1, 2);
	vm_expect(f->vm[2], 1, 3);
	vm_send(f->vm[1], 1, 2, 4);
	vm_expect(f->vm[2], 1, 4);
	vm_expect_nothing(f->vm[2]);
}

/* N9: the VM was not captured after all. */
static void test_n9_open(struct fixture *f, gconstpointer data)
{
	(void)data;
	read_until_gated(f, 0, 0);
	vm_send(f->vm[1], 1, 2, 3);
	host_settle(f->h, 1);
	vm_expect_nothing(f->vm[2]);
	net_open_gate(f->h->net, (struct vm_id){ 2 });
	expect_behind_probe(f->vm[2], 3);
	read_until_gated(f, 0, 0);
	host_start(f->h, 2, 0);                     /* a recovery opens it as well */
	close(f->vm[2]);
	f->vm[2] = host_connect(f->h, 2);
	vm_expect_closed(f->vm[1]);
	close(f->vm[1]);
	f->vm[1] = host_connect(f->h, 1);
	vm_send(f->vm[1], 1, 2, 9);
	vm_expect(f->vm[2], 1, 9);
}

/* What the socket did not take (a VM that does not read) is in flight too; nothing is lost, doubled or torn live. */
static void test_n4_backlog(struct fixture *f, gconstpointer data)
{
	(void)data;
	enum { N = 60 };
	struct test_frame *t = g_new(struct test_frame, 1);
	uint32_t numbers[N];
	for (uint32_t i = 0; i < N; i++) {
		frame_fill(t, 1, 2, numbers[i] = i, VCFT_FRAME_MAX); /* 60 * 64 KiB: more than the socket's buffer, so one is written in part */
		vm_send_frame(f->vm[1], t);
	}
	host_settle(f->h, N);
	g_assert_cmpuint(host_stats(f->h).dropped, ==, 0);
	vm_receive(f->vm[2], t);
	cut_all(f, 1);
	record_expect(f->h, 2, 1, 1, N - 1, numbers + 1);
	for (uint32_t i = 1; i < N; i++) {
		vm_receive(f->vm[2], t);
		g_assert_cmpuint(t->size, ==, VCFT_FRAME_MAX);
		g_assert_cmpuint(frame_number(t->bytes), ==, i);
		g_assert_cmpuint(t->bytes[VCFT_FRAME_MAX - 1], ==, (uint8_t)i);
	}
	vm_expect_nothing(f->vm[2]);
	cut_all(f, 2);
	record_expect(f->h, 2, 2, 1, 0, NULL);
	g_free(t);
}

/* Frames for a VM that has not connected yet wait for it, and are in flight. */
static void test_not_connected(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_vm(f->h, 5, 0);
	vm_send(f->vm[1], 1, 5, 1);
	host_settle(f->h, 1);
	host_cut(f->h, 5, 1);
	cut_all(f, 1);
	record_expect(f->h, 5, 1, 1, 1, (uint32_t[]){ 1 });
	int fd = host_connect(f->h, 5);
	vm_expect(fd, 1, 1);
	vm_expect_nothing(fd);
	close(fd);
}

/* ---- aborts ---- */

static void test_discard(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send(f->vm[1], 1, 2, 1);
	host_settle(f->h, 1);
	host_cut(f->h, 2, 1);
	net_discard(f->h->net, epoch_of(1));
	host_cut(f->h, 3, 1); /* an abort that was quicker than the cut */
	g_assert_null(net_take_record(f->h->net, (struct vm_id){ 2 }, epoch_of(1)));
	/* VM 1 was never cut at 1: its frames are two older now, and belong to the newest open record. */
	host_cut(f->h, 2, 2);
	vm_expect(f->vm[2], 1, 1);
	vm_send(f->vm[1], 1, 2, 2);
	vm_expect(f->vm[2], 1, 2);
	for (unsigned v = 1; v <= 4; v++)
		if (v != 2)
			host_cut(f->h, v, 2);
	net_marker(f->h->net, epoch_of(2), 0);
	HOST_WAIT(f->h, f->h->complete == 2);
	record_expect(f->h, 2, 2, 1, 2, (uint32_t[]){ 1, 2 }); /* 1 was unread at the cut */
}

/* A record that is complete is dropped as well; for an epoch that is given up already none is made and nobody is told. */
static void test_discard_complete(struct fixture *f, gconstpointer data)
{
	(void)data;
	cut_all(f, 1);
	net_discard(f->h->net, epoch_of(1));
	g_assert_null(net_take_record(f->h->net, (struct vm_id){ 2 }, epoch_of(1)));
	net_discard(f->h->net, epoch_of(2));
	host_cut(f->h, 2, 2);
	uint64_t recorded = host_stats(f->h).recorded;
	vm_send(f->vm[1], 1, 2, 1);
	vm_expect(f->vm[2], 1, 1);
	g_assert_cmpuint(host_stats(f->h).recorded, ==, recorded);
	for (unsigned v = 1; v <= 4; v++)
		if (v != 2)
			host_cut(f->h, v, 2);
	net_marker(f->h->net, epoch_of(2), 0);
	g_assert_cmpuint(HOST_GET(f->h, f->h->complete), ==, 1);
	cut_all(f, 3);
}

/* Held for an epoch that was given up: recorded at the next cut, for it was sent before that of its sender. */
static void test_discard_held(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_cut(f->h, 1, 1);
	vm_send(f->vm[1], 1, 2, 1);
	host_settle(f->h, 1);
	net_discard(f->h->net, epoch_of(1));
	host_cut(f->h, 2, 2);
	vm_expect(f->vm[2], 1, 1);
	host_cut(f->h, 1, 2);
	host_cut(f->h, 3, 2);
	host_cut(f->h, 4, 2);
	net_marker(f->h->net, epoch_of(2), 0);
	HOST_WAIT(f->h, f->h->complete == 2);
	record_expect(f->h, 2, 2, 1, 1, (uint32_t[]){ 1 });
}

/* ---- generations ---- */

static void test_freeze(struct fixture *f, gconstpointer data)
{
	(void)data;
	net_freeze(f->h->net);
	vm_send(f->vm[1], 1, 2, 1);
	while (host_stats(f->h).dropped < 1)
		sched_yield();
	vm_expect_nothing(f->vm[2]);
	net_run(f->h->net); /* too late: no effect */
	vm_send(f->vm[1], 1, 2, 2);
	while (host_stats(f->h).dropped < 2)
		sched_yield();
	vm_expect_nothing(f->vm[2]);
}

/* A frame to itself goes nowhere, but then the connection has been accepted. */
static void say_something(struct fixture *f)
{
	uint64_t n = host_stats(f->h).frames;
	for (unsigned v = 1; v <= 4; v++)
		vm_send(f->vm[v], v, v, 0);
	host_settle(f->h, n + 4);
}

static void reconnect(struct fixture *f)
{
	for (unsigned v = 1; v <= 4; v++) {
		vm_expect_closed(f->vm[v]);
		close(f->vm[v]);
		f->vm[v] = host_connect(f->h, v);
	}
}

static GBytes *record_of(unsigned from, unsigned to, unsigned count, const uint32_t *numbers)
{
	size_t size = 4 + (size_t)count * (5 + 64);
	struct test_frame *t = g_new(struct test_frame, 1);
	struct wire_writer w = wire_writer(g_malloc(size), size);
	wire_put_u32(&w, count);
	for (unsigned i = 0; i < count; i++) {
		frame_fill(t, from, to, numbers[i], 64);
		wire_put_u8(&w, 0);
		wire_put_u32(&w, 64);
		wire_put_bytes(&w, t->bytes, 64);
	}
	g_free(t);
	return g_bytes_new_take(w.start, w.used);
}

/* After a rollback nothing of the old generation is left; the record comes first, then what the VMs send, epochs go on from c+1. */
static void test_rollback(struct fixture *f, gconstpointer data)
{
	(void)data;
	g_autoptr(GError) error = NULL;
	g_autoptr(GBytes) record = record_of(1, 2, 2, (uint32_t[]){ 50, 51 });
	say_something(f);
	cut_all(f, 1);
	host_cut(f->h, 1, 2);
	vm_send(f->vm[1], 1, 2, 1); /* held: must not come back */
	host_settle(f->h, 5);
	net_freeze(f->h->net);
	net_rollback(f->h->net, (struct generation){ 2 }, epoch_of(1));
	reconnect(f);
	vm_send(f->vm[1], 1, 2, 60); /* before net_run: waits */
	g_assert_true(net_reinject(f->h->net, (struct vm_id){ 2 }, record, &error));
	g_assert_no_error(error);
	g_assert_true(net_reinject(f->h->net, (struct vm_id){ 3 }, NULL, &error));
	host_cut(f->h, 2, 2); /* comes too late: no effect */
	vm_expect_nothing(f->vm[2]);
	net_run(f->h->net);
	vm_expect(f->vm[2], 1, 50);
	vm_expect(f->vm[2], 1, 51);
	vm_expect(f->vm[2], 1, 60);
	vm_expect_nothing(f->vm[2]);
	cut_all(f, 2);
}

/* The frames of the record that the VM has not read are in flight again at the next cut. */
static void test_reinject_recorded(struct fixture *f, gconstpointer data)
{
	(void)data;
	g_autoptr(GBytes) record = record_of(1, 2, 3, (uint32_t[]){ 50, 51, 52 });
	say_something(f);
	net_rollback(f->h->net, (struct generation){ 2 }, epoch_of(4));
	reconnect(f);
	g_assert_true(net_reinject(f->h->net, (struct vm_id){ 2 }, record, NULL));
	net_run(f->h->net);
	vm_expect(f->vm[2], 1, 50);
	cut_all(f, 5);
	record_expect(f->h, 2, 5, 1, 2, (uint32_t[]){ 51, 52 });
}

static void test_reinject_bad(struct fixture *f, gconstpointer data)
{
	(void)data;
	g_autoptr(GBytes) good = record_of(1, 2, 2, (uint32_t[]){ 1, 2 });
	gsize size;
	const uint8_t *p = g_bytes_get_data(good, &size);
	g_autofree uint8_t *b = g_memdup2(p, size);
	say_something(f);
	net_rollback(f->h->net, (struct generation){ 2 }, epoch_of(0));
	for (gsize n = 1; n < size; n++) {
		g_autoptr(GBytes) cut = g_bytes_new(b, n);
		g_autoptr(GError) error = NULL;
		g_assert_false(net_reinject(f->h->net, (struct vm_id){ 2 }, cut, &error));
		g_assert_nonnull(error);
	}
	b[4] = 1; /* a NIC that the VM does not have */
	g_autoptr(GBytes) nic = g_bytes_new(b, size);
	g_assert_false(net_reinject(f->h->net, (struct vm_id){ 2 }, nic, NULL));
	g_assert_false(net_reinject(f->h->net, (struct vm_id){ 77 }, good, NULL));
	reconnect(f);
	net_run(f->h->net);
	vm_expect_nothing(f->vm[2]);
}

/* ---- limits and life ---- */

static const struct net_limits small = { .port_bytes = 256 << 10 }, large = { .port_bytes = 16 << 20 };
#define COST_LEAST 2048u   /* of memory for a frame of 1500 bytes */
#define COST_MOST 2560u

/* A VM that does not read costs a bounded amount, and others are not touched by it. */
static void test_flood(struct fixture *f, gconstpointer data)
{
	(void)data;
	enum { N = 20000 };
	struct test_frame *t = g_new(struct test_frame, 1);
	frame_fill(t, 1, 2, 0, 1500);
	for (uint32_t i = 0; i < N; i++)
		vm_send_frame(f->vm[1], t);
	host_settle(f->h, N);
	uint64_t dropped = host_stats(f->h).dropped;
	g_assert_cmpuint(dropped, >, 0);
	vm_send(f->vm[1], 1, 3, 5);
	vm_expect(f->vm[3], 1, 5);
	for (uint64_t i = 0; i < N - dropped; i++)
		vm_receive(f->vm[2], t);
	vm_expect_nothing(f->vm[2]);
	vm_send(f->vm[1], 1, 2, 6);
	vm_expect(f->vm[2], 1, 6);
	g_free(t);
}

static void test_held_bounded(struct fixture *f, gconstpointer data)
{
	(void)data;
	enum { N = 1000 };
	struct test_frame *t = g_new(struct test_frame, 1);
	host_cut(f->h, 1, 1);
	frame_fill(t, 1, 2, 0, 1500);
	for (uint32_t i = 0; i < N; i++)
		vm_send_frame(f->vm[1], t);
	host_settle(f->h, N);
	uint64_t dropped = host_stats(f->h).dropped;
	g_assert_cmpuint(host_stats(f->h).dropped_full, ==, dropped);
	g_assert_cmpuint((N - dropped) * COST_LEAST, <=, small.port_bytes / 2);
	g_assert_cmpuint((N - dropped + 1) * COST_MOST, >, small.port_bytes / 2);
	host_cut(f->h, 2, 1);
	for (uint64_t i = 0; i < N - dropped; i++)
		vm_receive(f->vm[2], t);
	vm_expect_nothing(f->vm[2]);
	g_free(t);
}

static void test_add_vm_errors(struct fixture *f, gconstpointer data)
{
	(void)data;
	g_autofree char *path = host_path(f->h, 20, 0), *longest = g_strnfill(200, 'x');
	const char *paths[] = { path }, *bad_paths[] = { longest };
	struct net_nic_spec nic = { .network = 5 };
	mac_of(20, nic.mac);
	GError *error = NULL;
	g_assert_false(net_add_vm(f->h->net, (struct vm_id){ 20 }, &nic, 1, paths, &error));
	g_assert_nonnull(strstr(error->message, "no network 5"));
	g_clear_error(&error);
	nic.network = 0;
	g_assert_false(net_add_vm(f->h->net, (struct vm_id){ 20 }, &nic, 1, bad_paths, &error));
	g_assert_error(error, G_FILE_ERROR, G_FILE_ERROR_NAMETOOLONG);
	g_clear_error(&error);
	mac_of(2, nic.mac);
	g_assert_false(net_add_vm(f->h->net, (struct vm_id){ 20 }, &nic, 1, paths, &error));
	g_assert_nonnull(strstr(error->message, "vm 2 has this MAC"));
	g_clear_error(&error);
	g_assert_false(net_add_network(f->h->net, 0, NULL, true, &error));
	g_clear_error(&error);
}

static void test_remove_and_move(struct fixture *f, gconstpointer data)
{
	(void)data;
	host_place(f->h, 2, 0, 7); /* moved away: the port is closed */
	vm_expect_closed(f->vm[2]);
	vm_send(f->vm[1], 1, 2, 1);
	host_settle(f->h, 1);
	host_vm(f->h, 2, 0); /* and back */
	close(f->vm[2]);
	f->vm[2] = host_connect(f->h, 2);
	vm_send(f->vm[1], 1, 2, 2);
	vm_expect(f->vm[2], 1, 2);
	net_remove_vm(f->h->net, (struct vm_id){ 2 });
	vm_expect_closed(f->vm[2]);
	net_clear(f->h->net);
	host_network(f->h, 0);
	host_vm(f->h, 1, 0);
	host_start(f->h, 1, 0); /* generation 1 again, after net_clear */
}

static const uint8_t length_0[4] = { 0, 0, 0, 0 }, length_65536[4] = { 0, 1, 0, 0 }, length_most[4] = { 255, 255, 255, 255 };

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
#define ADD(name, function, data) g_test_add("/net/port/" name, struct fixture, data, setup, function, teardown)
	ADD("unicast", test_unicast, NULL);
	ADD("broadcast", test_broadcast, NULL);
	ADD("N3-not-its-own", test_n3_not_its_own, NULL);
	ADD("N3-forged", test_n3_forged, NULL);
	ADD("N3-placed-elsewhere", test_n3_placed_elsewhere, NULL);
	ADD("short-frames", test_short_frames, NULL);
	ADD("large-frames", test_large_frames, NULL);
	ADD("spare", test_spare, NULL);
	ADD("P1-newer-held", test_p1_newer_held, NULL);
	ADD("N4-held-stays", test_n4_held_stays, NULL);
	ADD("P2-older-recorded", test_p2_older_recorded, NULL);
	ADD("N4-read-out", test_n4_read_out, NULL);
	ADD("N4-just-connected", test_n4_just_connected, NULL);
	ADD("N4-unread", test_n4_unread, NULL);
	ADD("N4-half-read", test_n4_half_read, NULL);
	ADD("N4-unread-sizes", test_n4_unread_sizes, NULL);
	ADD("N4-backlog", test_n4_backlog, &large);
	ADD("N9-a-frame-a-read", test_n9_a_frame_a_read, NULL);
	ADD("N9-gate", test_n9_gate, NULL);
	ADD("N9-keeps-one", test_n9_keeps_one, NULL);
	ADD("N9-keeps-a-large-one", test_n9_keeps_a_large_one, NULL);
	ADD("N9-keeps-one-and-reads", test_n9_keeps_one_and_reads, NULL);
	ADD("N9-stands-still", test_n9_stands_still, NULL);
	ADD("N9-did-not-run", test_n9_did_not_run, NULL);
	ADD("N9-open", test_n9_open, NULL);
	ADD("not-connected", test_not_connected, NULL);
	ADD("discard", test_discard, NULL);
	ADD("discard-complete", test_discard_complete, NULL);
	ADD("discard-held", test_discard_held, NULL);
	ADD("freeze", test_freeze, NULL);
	ADD("rollback", test_rollback, NULL);
	ADD("reinject-recorded", test_reinject_recorded, NULL);
	ADD("reinject-bad", test_reinject_bad, NULL);
	ADD("flood", test_flood, &small);
	ADD("held-bounded", test_held_bounded, &small);
	ADD("add-vm-errors", test_add_vm_errors, NULL);
	ADD("remove-and-move", test_remove_and_move, NULL);
#undef ADD
#define ADD(name, data) g_test_add("/net/port/bad-length/" name, struct fixture, data, setup_plain, test_bad_length, teardown)
	ADD("0", length_0);
	ADD("65536", length_65536);
	ADD("most", length_most);
	return g_test_run();
}
