/* test-uplink.c - a real TAP in a network namespace of its own: held and released (U1 U2 U3), immediate networks, what comes from outside,
 * announcements, and that nothing goes from tunnel to uplink or back (N2). Needs root. The outside is a packet socket on the TAP. */
#include "net-test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>

#define OUTSIDE 700             /* "VM number" of the outside's MAC */

struct fixture { struct host *h; int vm[4]; int outside; };

static int packet_socket(const char *device)
{
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = (int)if_nametoindex(device) };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(0x88b5));
	struct timeval limit = { .tv_sec = LIMIT_S };
	g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit), ==, 0);
	g_assert_cmpint(bind(fd, (struct sockaddr *)&a, sizeof a), ==, 0);
	return fd;
}

static void outside_expect(int fd, unsigned from, uint32_t number)
{
	uint8_t b[2048];
	ssize_t n = recv(fd, b, sizeof b, 0);
	g_assert_cmpint(n, >=, 60);
	g_assert_cmpuint(frame_from(b), ==, from);
	g_assert_cmpuint(frame_number(b), ==, number);
}

static void outside_send(int fd, unsigned from, unsigned to, uint32_t number)
{
	struct test_frame *t = g_new(struct test_frame, 1);
	frame_fill(t, from, to, number, 64);
	g_assert_cmpint(send(fd, t->bytes, t->size, 0), ==, t->size);
	g_free(t);
}

/* Network 0 with an uplink, VMs 1, 2, 3, generation 1, epoch 1. */
static void setup_uplink(struct fixture *f, bool commit, const struct net_limits *limits)
{
	g_autoptr(GError) error = NULL;
	f->h = host_new(1, limits);
	g_assert_true(net_add_network(f->h->net, 0, "vcft-test", commit, &error));
	g_assert_no_error(error);
	f->outside = packet_socket("vcft-test");
	for (unsigned v = 1; v <= 3; v++)
		host_vm(f->h, v, 0);
	host_start(f->h, 1, 0);
	for (unsigned v = 1; v <= 3; v++)
		f->vm[v] = host_connect(f->h, v);
}

static void setup(struct fixture *f, gconstpointer limits) { setup_uplink(f, true, limits); }

static void setup_immediate(struct fixture *f, gconstpointer data)
{
	(void)data;
	setup_uplink(f, false, NULL);
}

static void teardown(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (unsigned v = 1; v <= 3; v++)
		close(f->vm[v]);
	close(f->outside);
	host_free(f->h);
}

/* The kernel may send frames of its own into the TAP: count only what VMs send. */
static void vm_send_settled(struct fixture *f, unsigned from, unsigned to, uint32_t number)
{
	uint64_t before = host_stats(f->h).held_frames;
	vm_send(f->vm[from], from, to, number);
	while (host_stats(f->h).held_frames == before)
		sched_yield();
}

static void release(struct fixture *f, uint64_t r)
{
	net_release(f->h->net, epoch_of(r));
	host_stats(f->h); /* a call that waits: the release before it has been done */
}

/* U1, U2: nothing leaves before its release; then in the order it came. */
static void test_u1_held(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (uint32_t i = 0; i < 5; i++)
		vm_send_settled(f, 1, OUTSIDE, i);
	host_cut(f->h, 1, 1);
	vm_send_settled(f, 1, OUTSIDE, 5);
	vm_expect_nothing(f->outside);
	release(f, 1);
	for (uint32_t i = 0; i < 5; i++)
		outside_expect(f->outside, 1, i);
	vm_expect_nothing(f->outside);
	g_assert_cmpuint(host_stats(f->h).held_frames, ==, 1);
	host_cut(f->h, 1, 2);
	release(f, 2);
	outside_expect(f->outside, 1, 5);
	g_assert_cmpuint(host_stats(f->h).held_bytes, ==, 0);
}

/* U2: a frame does not wait for a newer one of another VM; each VM's own order stays. */
static void test_u2_order(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send_settled(f, 2, OUTSIDE, 1);
	host_cut(f->h, 1, 1);
	vm_send_settled(f, 1, OUTSIDE, 2); /* epoch 2 */
	vm_send_settled(f, 2, OUTSIDE, 3); /* epoch 1 */
	host_cut(f->h, 2, 1);
	vm_send_settled(f, 2, OUTSIDE, 4); /* epoch 2 */
	release(f, 1);
	outside_expect(f->outside, 2, 1);
	outside_expect(f->outside, 2, 3);
	vm_expect_nothing(f->outside);
	release(f, 2);
	outside_expect(f->outside, 1, 2);
	outside_expect(f->outside, 2, 4);
}

/* U3: a rollback to c drops what is newer, and nothing else. */
static void test_u3_rollback(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send_settled(f, 1, OUTSIDE, 1);
	host_cut(f->h, 1, 1);
	vm_send_settled(f, 1, OUTSIDE, 2);
	host_cut(f->h, 1, 2);
	vm_send_settled(f, 1, OUTSIDE, 3);
	net_freeze(f->h->net);
	release(f, 3); /* frozen: too late */
	vm_expect_nothing(f->outside);
	net_rollback(f->h->net, (struct generation){ 2 }, epoch_of(2));
	g_assert_cmpuint(host_stats(f->h).held_frames, ==, 2);
	release(f, 2);
	vm_expect_nothing(f->outside); /* not before it runs */
	net_run(f->h->net);
	outside_expect(f->outside, 1, 1);
	outside_expect(f->outside, 1, 2);
	vm_expect_nothing(f->outside);
}

/* An epoch that was given up leaves with the next one. */
static void test_given_up(struct fixture *f, gconstpointer data)
{
	(void)data;
	vm_send_settled(f, 1, OUTSIDE, 1);
	host_cut(f->h, 1, 1);
	net_discard(f->h->net, epoch_of(1));
	vm_send_settled(f, 1, OUTSIDE, 2);
	host_cut(f->h, 1, 2);
	release(f, 2);
	outside_expect(f->outside, 1, 1);
	outside_expect(f->outside, 1, 2);
}

static void test_immediate(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (uint32_t i = 0; i < 10; i++)
		vm_send(f->vm[1], 1, OUTSIDE, i);
	for (uint32_t i = 0; i < 10; i++)
		outside_expect(f->outside, 1, i);
	net_freeze(f->h->net);
	vm_send(f->vm[1], 1, OUTSIDE, 11);
	while (host_stats(f->h).dropped < 1)
		sched_yield();
	vm_expect_nothing(f->outside);
}

static const struct net_limits small = { .held_bytes = 64 << 10 };

static void test_held_bounded(struct fixture *f, gconstpointer data)
{
	(void)data;
	for (uint32_t i = 0; i < 1000; i++)
		vm_send(f->vm[1], 1, OUTSIDE, i);
	while (host_stats(f->h).held_frames + host_stats(f->h).dropped < 1000)
		sched_yield();
	uint64_t held = host_stats(f->h).held_frames;
	g_assert_cmpuint(held, >, 0);
	g_assert_cmpuint(host_stats(f->h).held_bytes, <=, small.held_bytes / 2 + 512); /* of memory; one sender has at most half and half a frame (N8) */
	vm_send(f->vm[2], 2, OUTSIDE, 7);
	while (host_stats(f->h).held_frames < held + 1) /* and there is room for another */
		sched_yield();
	g_assert_cmpuint(host_stats(f->h).dropped_full, ==, 1000 - held);
	release(f, 1);
	for (uint32_t i = 0; i < held; i++)
		outside_expect(f->outside, 1, i);
	outside_expect(f->outside, 2, 7);
	vm_send(f->vm[1], 1, OUTSIDE, 1000);
	outside_expect(f->outside, 1, 1000); /* what has left gave its room back to its sender (N8) */
	vm_expect_nothing(f->outside);
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#else
#define SANITIZED false
#endif

/* Bytes of memory that are this process's own. */
static uint64_t own_memory(void)
{
	g_autofree char *text = NULL;
	g_assert_true(g_file_get_contents("/proc/self/status", &text, NULL, NULL));
	const char *at = strstr(text, "RssAnon:");
	g_assert_nonnull(at);
	return g_ascii_strtoull(at + strlen("RssAnon:"), NULL, 10) << 10;
}

static const struct net_limits some = { .held_bytes = 16 << 20 };

/* A guest that floods small frames within one epoch: what they take of memory is bounded, not what they carry; those that are dropped are counted. */
static void test_million(struct fixture *f, gconstpointer data)
{
	(void)data;
	enum { N = 1000000 };
	uint64_t before = own_memory();
	for (uint32_t i = 0; i < N; i++)
		vm_send(f->vm[1], 1, OUTSIDE, i);
	while (host_stats(f->h).held_frames + host_stats(f->h).dropped_full < N)
		sched_yield();
	struct net_stats stats = host_stats(f->h);
	uint64_t took = own_memory() - before;
	g_test_message("%" PRIu64 " of %d frames held, %" PRIu64 " KiB accounted, %" PRIu64 " KiB taken", stats.held_frames, N, stats.held_bytes >> 10,
	               took >> 10);
	g_assert_cmpuint(stats.held_bytes, <=, some.held_bytes);
	g_assert_cmpuint(stats.held_frames, >, 15000);
	if (!SANITIZED)   /* else each allocation has company */
		g_assert_cmpuint(took, <=, some.held_bytes + (4 << 20));
	release(f, 1);
	while (host_stats(f->h).held_frames)
		sched_yield();
	g_assert_cmpuint(host_stats(f->h).held_bytes, ==, 0);
}

static void up_or_down(const char *state)
{
	g_autofree char *command = g_strdup_printf("ip link set vcft-test %s", state);
	g_assert_cmpint(system(command), ==, 0);
}

/* A link that is down takes no frame and holds up none; it is used again when it is up. */
static void test_link_down(struct fixture *f, gconstpointer data)
{
	(void)data;
	up_or_down("down");
	vm_send(f->vm[1], 1, OUTSIDE, 1);
	while (host_stats(f->h).dropped_down < 1)
		sched_yield();
	g_assert_cmpuint(host_stats(f->h).held_frames, ==, 0);
	up_or_down("up");
	char waste;
	(void)!recv(f->outside, &waste, 1, MSG_DONTWAIT);   /* it tells the observer, too, that the link was down */
	vm_send(f->vm[1], 1, OUTSIDE, 2);
	outside_expect(f->outside, 1, 2);
}

/* From outside: to the VM that is meant, to all if it is not known, never back out, never as one of ours. */
static void test_inwards(struct fixture *f, gconstpointer data)
{
	(void)data;
	outside_send(f->outside, OUTSIDE, 2, 1);
	vm_expect(f->vm[2], OUTSIDE, 1);
	vm_expect_nothing(f->vm[1]);
	outside_send(f->outside, OUTSIDE, BROADCAST, 2);
	vm_expect(f->vm[1], OUTSIDE, 2);
	vm_expect(f->vm[2], OUTSIDE, 2);
	vm_expect(f->vm[3], OUTSIDE, 2);
	outside_send(f->outside, 1, 2, 3);         /* forged, or an echo */
	outside_send(f->outside, OUTSIDE, 2, 4);
	vm_expect(f->vm[2], OUTSIDE, 4);
	vm_send_settled(f, 1, OUTSIDE, 5);         /* learned: to the uplink only */
	vm_expect_nothing(f->vm[2]);
	/* Not subject to the cut rule, but what is unread at the cut is in flight. */
	host_cut(f->h, 3, 1);
	outside_send(f->outside, OUTSIDE, 3, 6);
	vm_expect(f->vm[3], OUTSIDE, 6);
	uint64_t frames = host_stats(f->h).frames;
	outside_send(f->outside, OUTSIDE, 2, 7);
	host_settle(f->h, frames + 1);
	host_cut(f->h, 2, 1);
	host_cut(f->h, 1, 1);
	net_marker(f->h->net, epoch_of(1), 0);
	HOST_WAIT(f->h, f->h->complete == 1);
	record_expect(f->h, 2, 1, OUTSIDE, 1, (uint32_t[]){ 7 });
	record_expect(f->h, 3, 1, OUTSIDE, 0, NULL);
}

/* U4: what the rolled-back VM has not seen comes again, in order; what it has seen does not. While the switch stands nothing is delivered. */
static void test_u4_comes_again(struct fixture *f, gconstpointer data)
{
	(void)data;
	outside_send(f->outside, OUTSIDE, 2, 1);
	vm_expect(f->vm[2], OUTSIDE, 1);
	for (unsigned v = 1; v <= 3; v++)
		host_cut(f->h, v, 1);
	outside_send(f->outside, OUTSIDE, 2, 2);
	vm_expect(f->vm[2], OUTSIDE, 2);
	net_freeze(f->h->net);
	uint64_t frames = host_stats(f->h).frames;
	outside_send(f->outside, OUTSIDE, 2, 3);
	host_settle(f->h, frames + 1);
	vm_expect_nothing(f->vm[2]);
	net_rollback(f->h->net, (struct generation){ 2 }, epoch_of(1));
	close(f->vm[2]);
	f->vm[2] = host_connect(f->h, 2);
	net_run(f->h->net);
	vm_expect(f->vm[2], OUTSIDE, 2);
	vm_expect(f->vm[2], OUTSIDE, 3);
	vm_expect_nothing(f->vm[2]);
}

/* U4: what was released is forgotten: a rollback never goes behind it. */
static void test_u4_released_is_forgotten(struct fixture *f, gconstpointer data)
{
	(void)data;
	outside_send(f->outside, OUTSIDE, 2, 1);
	vm_expect(f->vm[2], OUTSIDE, 1);
	for (unsigned v = 1; v <= 3; v++)
		host_cut(f->h, v, 1);
	release(f, 1);
	net_freeze(f->h->net);
	net_rollback(f->h->net, (struct generation){ 2 }, epoch_of(1));
	close(f->vm[2]);
	f->vm[2] = host_connect(f->h, 2);
	net_run(f->h->net);
	vm_expect_nothing(f->vm[2]);
}

static void test_announce(struct fixture *f, gconstpointer data)
{
	(void)data;
	struct sockaddr_ll a = { .sll_family = AF_PACKET, .sll_protocol = htons(0x8035), .sll_ifindex = (int)if_nametoindex("vcft-test") };
	g_assert_cmpint(bind(f->outside, (struct sockaddr *)&a, sizeof a), ==, 0);
	net_announce(f->h->net);
	unsigned seen = 0;
	for (int i = 0; i < 3; i++) {
		uint8_t b[2048];
		g_assert_cmpint(recv(f->outside, b, sizeof b, 0), ==, 60);
		g_assert_cmpuint(b[0] & b[5], ==, 0xff);
		g_assert_cmpmem(b + 6, 6, b + 22, 6);
		seen |= 1u << frame_from(b);
	}
	g_assert_cmpuint(seen, ==, 1 << 1 | 1 << 2 | 1 << 3);
	vm_expect_nothing(f->outside);
}

/* N2: what comes by a tunnel does not leave here, what comes from outside goes into no tunnel. */
static void test_n2(struct fixture *f, gconstpointer data)
{
	(void)data;
	struct host *other = host_new(2, NULL);
	host_network(other, 0);
	host_vm(other, 8, 0);
	host_place(f->h, 8, 0, 2);
	for (unsigned v = 1; v <= 3; v++)
		host_place(other, v, 0, 1);
	host_add(f->h, 2, other->port);
	host_add(other, 1, f->h->port);
	HOST_WAIT(other, other->up == 1 << 1);
	host_start(other, 1, 0);
	int vm8 = host_connect(other, 8);
	vm_send(vm8, 8, BROADCAST, 1);
	vm_expect(f->vm[1], 8, 1);
	vm_send(vm8, 8, OUTSIDE, 2);
	vm_expect(f->vm[1], 8, 2);
	g_assert_cmpuint(host_stats(f->h).held_frames, ==, 0);
	outside_send(f->outside, OUTSIDE, BROADCAST, 3);
	vm_expect(f->vm[1], OUTSIDE, 3);
	outside_send(f->outside, OUTSIDE, 8, 4); /* to a VM elsewhere: its own host has an uplink */
	vm_send(f->vm[1], 1, BROADCAST, 5);
	vm_expect(vm8, 1, 5);
	vm_expect_nothing(vm8);
	close(vm8);
	host_free(other);
}

static void test_errors(void)
{
	struct host *h = host_new(1, NULL);
	GError *error = NULL;
	g_assert_false(net_add_network(h->net, 0, "a-name-that-is-too-long-for-linux", true, &error));
	g_assert_nonnull(error);
	g_clear_error(&error);
	g_assert_false(net_add_network(h->net, 0, "lo", true, &error)); /* not a TAP */
	g_assert_nonnull(error);
	g_clear_error(&error);
	g_assert_true(net_add_network(h->net, 0, "vcft-a", true, &error));
	g_assert_false(net_add_network(h->net, 1, "vcft-a", true, &error)); /* taken */
	g_clear_error(&error);
	net_clear(h->net);
	g_assert_true(net_add_network(h->net, 1, "vcft-a", true, &error));
	host_free(h);
}

/* A name space with its loopback up and without IPv6, whose own messages would come out of the TAP. */
static bool own_namespace(void)
{
	if (geteuid() != 0 || access("/dev/net/tun", R_OK | W_OK) < 0 || unshare(CLONE_NEWNET) < 0)
		return false;
	struct ifreq r = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);
	g_assert_cmpint(ioctl(s, SIOCSIFFLAGS, &r), ==, 0);
	if (fd >= 0 && write(fd, "1", 1) != 1)
		g_test_message("IPv6 stays on");
	close(fd);
	close(s);
	return true;
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	if (!own_namespace()) {
		g_print("1..0 # SKIP root, /dev/net/tun and network namespaces are needed\n");
		return 0;
	}
#define ADD(name, set, function, data) g_test_add("/net/uplink/" name, struct fixture, data, set, function, teardown)
	ADD("U1-held", setup, test_u1_held, NULL);
	ADD("U2-order", setup, test_u2_order, NULL);
	ADD("U3-rollback", setup, test_u3_rollback, NULL);
	ADD("given-up", setup, test_given_up, NULL);
	ADD("immediate", setup_immediate, test_immediate, NULL);
	ADD("held-bounded", setup, test_held_bounded, &small);
	ADD("million", setup, test_million, &some);
	ADD("link-down", setup_immediate, test_link_down, NULL);
	ADD("inwards", setup, test_inwards, NULL);
	ADD("u4-comes-again", setup, test_u4_comes_again, NULL);
	ADD("u4-released-is-forgotten", setup, test_u4_released_is_forgotten, NULL);
	ADD("announce", setup, test_announce, NULL);
	ADD("N2", setup, test_n2, NULL);
	g_test_add_func("/net/uplink/errors", test_errors);
	return g_test_run();
}
