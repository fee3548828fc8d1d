/* test-charge.c - what the kernel must do for N4 to be exact (charge.c): on a Unix stream socket each send() has buffers of its own, charged by its
 * length alone, which count in SIOCOUTQ until they are wholly read. And the pieces: rings of frames, the table of addresses. */
#include "net-test.h"

#include "net/net-private.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

static uint32_t outq(int fd)
{
	int n;
	g_assert_cmpint(ioctl(fd, SIOCOUTQ, &n), ==, 0);
	return (uint32_t)n;
}

struct pair { int fd[2]; struct charges charges; };

static void pair_open(struct pair *p)
{
	int size = SOCKET_SEND_BYTES;
	g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, p->fd), ==, 0);
	setsockopt(p->fd[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	g_assert_true(charges_init(&p->charges, NULL));
}

static void pair_close(struct pair *p)
{
	close(p->fd[0]);
	close(p->fd[1]);
	charges_clear(&p->charges);
}

/* Charges add up, in any mixture of sizes, and go away one by one as the reader has finished each. */
static void test_kernel_exact(void)
{
	struct pair p;
	pair_open(&p);
	static uint8_t b[VCFT_FRAME_MAX + 4];
	g_autoptr(GRand) rand = g_rand_new_with_seed(1);
	for (int round = 0; round < 200; round++) {
		size_t sizes[12];
		uint32_t sum = 0;
		for (int i = 0; i < 12; i++) {
			sizes[i] = (size_t)g_rand_int_range(rand, 18, g_rand_boolean(rand) ? 1520 : 30000);
			g_assert_cmpint(send(p.fd[0], b, sizes[i], MSG_DONTWAIT), ==, sizes[i]);
			sum += charge_of(&p.charges, sizes[i]);
			g_assert_cmpuint(outq(p.fd[0]), ==, sum);
		}
		for (int i = 0; i < 12; i++) {
			read_all(p.fd[1], b, sizes[i] - 1);
			g_assert_cmpuint(outq(p.fd[0]), ==, sum); /* all but one byte: still charged in full */
			read_all(p.fd[1], b, 1);
			g_assert_cmpuint(outq(p.fd[0]), ==, sum -= charge_of(&p.charges, sizes[i]));
		}
	}
	pair_close(&p);
}

/* A send() that is taken in part is charged as one of that part's length. */
static void test_kernel_partial(void)
{
	struct pair p;
	pair_open(&p);
	static uint8_t b[VCFT_FRAME_MAX + 4];
	uint32_t sum = 0;
	unsigned partial = 0;
	for (;;) {
		ssize_t n = send(p.fd[0], b, sizeof b, MSG_DONTWAIT);
		if (n < 0)
			break;
		partial += n < (ssize_t)sizeof b;
		sum += charge_of(&p.charges, (size_t)n);
		g_assert_cmpuint(outq(p.fd[0]), ==, sum);
	}
	g_assert_cmpint(errno, ==, EAGAIN);
	g_test_message("%u partial sends, %u bytes charged", partial, sum);
	pair_close(&p);
}

/* sendmmsg(): each message is a send() of its own, and one read() may take many. */
static void test_kernel_batch(void)
{
	struct pair p;
	pair_open(&p);
	static uint8_t b[64 * 100];
	struct mmsghdr m[64];
	struct iovec iov[64];
	uint32_t sum = 0;
	for (unsigned i = 0; i < 64; i++) {
		iov[i] = (struct iovec){ b, 18 + i };
		m[i] = (struct mmsghdr){ .msg_hdr = { .msg_iov = &iov[i], .msg_iovlen = 1 } };
		sum += charge_of(&p.charges, 18 + i);
	}
	g_assert_cmpint(sendmmsg(p.fd[0], m, 64, MSG_DONTWAIT), ==, 64);
	g_assert_cmpuint(outq(p.fd[0]), ==, sum);
	g_assert_cmpint(read(p.fd[1], b, 18 + 19 + 10), ==, 18 + 19 + 10);
	g_assert_cmpuint(outq(p.fd[0]), ==, sum - charge_of(&p.charges, 18) - charge_of(&p.charges, 19));
	g_assert_cmpint(read(p.fd[1], b, sizeof b), ==, 64 * 18 + 63 * 64 / 2 - 18 - 19 - 10);
	g_assert_cmpuint(outq(p.fd[0]), ==, 0);
	pair_close(&p);
}

static void test_ring(void)
{
	struct frame_pool pool = { 0 };
	struct ring ring = { 0 };
	uint32_t in = 0, out = 0;
	for (int round = 0; round < 300; round++) {
		for (int i = round % 7; i >= 0; i--, in++)
			ring_push(&ring, frame_new(&pool, &in, sizeof in));
		for (int i = round % 5; i >= 0 && ring.count; i--, out++) {
			struct frame *f = ring_pop(&ring);
			g_assert_cmpmem(f->data, f->size, &out, sizeof out);
			frame_unref(&pool, f);
		}
		g_assert_cmpuint(ring.count, ==, in - out);
	}
	ring_cut(&pool, &ring, 3);
	g_assert_cmpuint(ring.count, ==, 3);
	g_assert_cmpmem(ring_at(&ring, 2)->frame->data, 4, &(uint32_t){ out + 2 }, 4);
	ring_free(&pool, &ring);
	frame_pool_clear(&pool);
}

static void test_mac(void)
{
	struct mac_table t;
	uint8_t m[6];
	mac_init(&t);
	for (unsigned i = 0; i < LEARNED_MAX; i++) {
		mac_of(i, m);
		mac_learn(&t, i % 2, m, (struct mac_entry){ .place = MAC_HOST, .host = { 5 } });
	}
	mac_of(2, m);
	g_assert_nonnull(mac_find(&t, 0, m));
	g_assert_null(mac_find(&t, 1, m));
	mac_pin(&t, 0, m, (struct mac_entry){ .place = MAC_HOST, .host = { 6 }, .vm = { 9 } });
	g_assert_cmpuint(t.learned, ==, LEARNED_MAX - 1);
	mac_of(40000, m);
	mac_learn(&t, 0, m, (struct mac_entry){ .place = MAC_UPLINK });
	mac_of(40001, m);
	mac_learn(&t, 0, m, (struct mac_entry){ .place = MAC_UPLINK }); /* one too many: forget all, but not what is pinned */
	g_assert_cmpuint(t.learned, ==, 1);
	mac_of(2, m);
	g_assert_cmpuint(mac_find(&t, 0, m)->host.n, ==, 6);
	mac_unpin_vm(&t, (struct vm_id){ 9 });
	g_assert_null(mac_find(&t, 0, m));
	mac_clear(&t);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/net/charge/kernel-exact", test_kernel_exact);
	g_test_add_func("/net/charge/kernel-partial", test_kernel_partial);
	g_test_add_func("/net/charge/kernel-batch", test_kernel_batch);
	g_test_add_func("/net/frame/ring", test_ring);
	g_test_add_func("/net/mac/table", test_mac);
	return g_test_run();
}
