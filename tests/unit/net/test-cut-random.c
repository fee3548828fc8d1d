/* test-cut-random.c - P1 and P2 against a dumb oracle: four VMs on two hosts send to each other at random, are stopped and cut at random moments,
 * read in pieces of any size. For every pair and every checkpoint: what the receiver has wholly read at its cut, and then the record, in
 * order, is exactly what the sender had sent at its cut. Some checkpoints are given up half-way. Seed: argument of --seed of GLib's tests. */
#include "net-test.h"

#include <fcntl.h>

#define VMS 4
#define ROUNDS 60
#define READS 60   /* a read gives one frame at most (N9): who reads less than is sent has more in flight than a record takes, and N8 drops the rest */

struct vm {
	pthread_mutex_t lock;           /* held: the VM is stopped */
	pthread_t thread;
	GRand *rand;
	unsigned number;
	int fd;
	bool end;
	uint32_t sent[VMS + 1], got[VMS + 1];
	uint32_t cut_sent[VMS + 1], cut_got[VMS + 1];
	uint8_t rx[1 << 18];
	size_t rx_used, rx_want;        /* rx_want: of a frame that is read in part */
	uint8_t tx[VCFT_FRAME_MAX + 4];
	size_t tx_at, tx_size;
};

static uint32_t host_of(unsigned vm) { return vm <= VMS / 2 ? 1 : 2; }

static void count_frames(struct vm *v)
{
	size_t at = 0;
	while (v->rx_used - at >= 4) {
		uint32_t be;
		memcpy(&be, v->rx + at, 4);
		size_t n = GUINT32_FROM_BE(be);
		if (v->rx_used - at < 4 + n)
			break;
		unsigned from = frame_from(v->rx + at + 4);
		g_assert_cmpuint(frame_number(v->rx + at + 4), ==, v->got[from]);
		v->got[from]++;
		at += 4 + n;
	}
	v->rx_used -= at;
	memmove(v->rx, v->rx + at, v->rx_used);
}

static void read_step(struct vm *v)
{
	size_t most = (size_t)g_rand_int_range(v->rand, 1, g_rand_int_range(v->rand, 0, 4) ? 20000 : 100);
	ssize_t n = recv(v->fd, v->rx + v->rx_used, MIN(most, sizeof v->rx - v->rx_used), MSG_DONTWAIT);
	if (n > 0)
		v->rx_used += (size_t)n;
	count_frames(v);
}

/* QEMU stops between frames: one that is begun is finished first, and counts when it is begun, as the guest has sent it. */
static bool send_step(struct vm *v)
{
	if (!v->tx_size) {
		unsigned to = (unsigned)g_rand_int_range(v->rand, 1, VMS + 1);
		if (to == v->number)
			return true;
		struct test_frame *f = g_new(struct test_frame, 1);
		frame_fill(f, v->number, to, v->sent[to], (size_t)g_rand_int_range(v->rand, 20, g_rand_int_range(v->rand, 0, 20) ? 1515 : 60000));
		uint32_t be = GUINT32_TO_BE((uint32_t)f->size);
		memcpy(v->tx, &be, 4);
		memcpy(v->tx + 4, f->bytes, f->size);
		v->tx_at = 0;
		v->tx_size = 4 + f->size;
		v->sent[to]++;
		g_free(f);
	}
	ssize_t n = send(v->fd, v->tx + v->tx_at, v->tx_size - v->tx_at, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n > 0 && (v->tx_at += (size_t)n) == v->tx_size)
		v->tx_size = 0;
	return n > 0;
}

static void *vm_main(void *data)
{
	struct vm *v = data;
	for (;;) {
		pthread_mutex_lock(&v->lock);
		if (v->end)
			break;
		for (int i = g_rand_int_range(v->rand, 0, 12); i > 0; i--)
			send_step(v);
		for (int i = g_rand_int_range(v->rand, 0, READS); i > 0; i--)
			read_step(v);
		while (v->tx_size && send_step(v)) /* a VM is only ever stopped with whole frames sent */
			;
		bool begun = v->tx_size;
		pthread_mutex_unlock(&v->lock);
		if (begun) { /* the switch is behind: let it */
			struct pollfd p = { .fd = v->fd, .events = POLLOUT };
			poll(&p, 1, 10);
		}
		if (g_rand_int_range(v->rand, 0, 8) == 0)
			g_usleep((gulong)g_rand_int_range(v->rand, 1, 200));
		else
			sched_yield();
	}
	pthread_mutex_unlock(&v->lock);
	return NULL;
}

/* Stop, cut, go on. */
static void cut(struct host *h, struct vm *v, uint64_t r)
{
	for (;;) {
		pthread_mutex_lock(&v->lock);
		if (!v->tx_size)
			break;
		send_step(v);
		read_step(v);
		pthread_mutex_unlock(&v->lock);
		sched_yield();
	}
	memcpy(v->cut_sent, v->sent, sizeof v->sent);
	memcpy(v->cut_got, v->got, sizeof v->got);
	host_cut(h, v->number, r);
	pthread_mutex_unlock(&v->lock);
}

static void check(struct host *h, struct vm *vms, unsigned to, uint64_t r)
{
	g_autoptr(GBytes) record = net_take_record(h->net, (struct vm_id){ to }, epoch_of(r));
	g_assert_nonnull(record);
	gsize size;
	const uint8_t *p = g_bytes_get_data(record, &size);
	struct wire_reader rd = wire_reader(p, size);
	for (uint32_t left = wire_u32(&rd); left; left--) {
		wire_u8(&rd);
		uint32_t n = wire_u32(&rd);
		const uint8_t *b = wire_bytes(&rd, n);
		unsigned from = frame_from(b);
		g_assert_cmpuint(frame_number(b), ==, vms[to].cut_got[from]);
		vms[to].cut_got[from]++;
	}
	g_assert_true(wire_done(&rd));
	for (unsigned from = 1; from <= VMS; from++)
		g_assert_cmpuint(vms[to].cut_got[from], ==, vms[from].cut_sent[to]);
}

static void checkpoint(struct host **h, struct vm *vms, uint64_t r, bool give_up)
{
	unsigned order[VMS];
	for (unsigned i = 0; i < VMS; i++)
		order[i] = i + 1;
	for (unsigned i = VMS - 1; i > 0; i--) {
		unsigned k = (unsigned)g_test_rand_int_range(0, (gint32)i + 1), o = order[i];
		order[i] = order[k];
		order[k] = o;
	}
	unsigned left[3] = { 0, VMS / 2, VMS - VMS / 2 }, cuts = give_up ? (unsigned)g_test_rand_int_range(0, VMS) : VMS;
	for (unsigned i = 0; i < cuts; i++) {
		uint32_t id = host_of(order[i]);
		cut(h[id], &vms[order[i]], r);
		if (!--left[id])
			net_marker(h[id]->net, epoch_of(r), host_bit((struct host_id){ 3 - id }));
		g_usleep((gulong)g_test_rand_int_range(0, 3000));
	}
	for (uint32_t id = 1; give_up && id <= 2; id++)
		net_discard(h[id]->net, epoch_of(r));
	if (give_up)
		return;
	for (uint32_t id = 1; id <= 2; id++)
		HOST_WAIT(h[id], h[id]->complete == r);
	for (unsigned v = 1; v <= VMS; v++)
		check(h[host_of(v)], vms, v, r);
}

static void hosts_up(struct host **h, struct vm *vms)
{
	for (uint32_t id = 1; id <= 2; id++) {
		h[id] = host_new(id, &(struct net_limits){ .port_bytes = 256 << 20 }); /* never full: nothing may be dropped */
		host_network(h[id], 0);
		for (unsigned v = 1; v <= VMS; v++)
			if (host_of(v) == id)
				host_vm(h[id], v, 0);
			else
				host_place(h[id], v, 0, host_of(v));
		host_start(h[id], 1, 0);
	}
	host_add(h[1], 2, h[2]->port);
	host_add(h[2], 1, h[1]->port);
	for (unsigned v = 1; v <= VMS; v++) {
		vms[v].number = v;
		vms[v].fd = host_connect(h[host_of(v)], v);
		vms[v].rand = g_rand_new_with_seed((guint32)g_test_rand_int());
		pthread_mutex_init(&vms[v].lock, NULL);
		pthread_create(&vms[v].thread, NULL, vm_main, &vms[v]);
	}
}

static void test_random(void)
{
	struct host *h[3];
	struct vm *vms = g_new0(struct vm, VMS + 1);
	hosts_up(h, vms);
	for (uint64_t r = 1; r <= ROUNDS; r++)
		checkpoint(h, vms, r, g_test_rand_int_range(0, 5) == 0);
	uint64_t all = 0;
	for (unsigned v = 1; v <= VMS; v++) {
		pthread_mutex_lock(&vms[v].lock);
		vms[v].end = true;
		pthread_mutex_unlock(&vms[v].lock);
		pthread_join(vms[v].thread, NULL);
		for (unsigned to = 1; to <= VMS; to++)
			all += vms[v].sent[to];
		close(vms[v].fd);
		g_rand_free(vms[v].rand);
	}
	g_test_message("%" PRIu64 " frames, %" PRIu64 " recorded", all, host_stats(h[1]).recorded + host_stats(h[2]).recorded);
	g_assert_cmpuint(host_stats(h[1]).recorded, >, 0);
	for (uint32_t id = 1; id <= 2; id++) {
		g_assert_cmpuint(host_stats(h[id]).dropped, ==, 0);
		host_free(h[id]);
	}
	g_free(vms);
}

int main(int argc, char **argv)
{
	g_test_init(&argc, &argv, NULL);
	g_test_add_func("/net/cut/random", test_random);
	return g_test_run();
}
