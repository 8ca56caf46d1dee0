# Puts the tensors of one call into the library's terms: rows x groups x cols. An array's first
# dimension is its columns; of the others, those up to a split are the groups, those after it the
# rows, the same ones for all tensors. The library knows one stride for each, so that dimensions
# which are one must follow each other in memory.

# A tensor of main's size.
rows_like(::Nothing, name, main::Operand{N}, place, main_name="x") where {N} = absent(Val(N))
function rows_like(array, name, main::Operand{N}, place, main_name="x") where {N}
    found = columns(array, name, place)
    found.size == main.size || refuse_size(name, found.size, main.size, main.size, main_name)
    return found::Operand{N}
end

# rstd: main's size without the columns.
row_numbers(::Nothing, name, main::Operand{N}, place) where {N} = absent(Val(N))
function row_numbers(array, name, main::Operand{N}, place) where {N}
    found, wanted = operand(array, name, place), Base.tail(main.size)
    found.size == wanted || refuse_size(name, found.size, main.size, wanted, "x")
    return Operand{N}(found.data, found.dtype, (1, found.size...), (1, found.strides...))
end

# weight, bias and their gradients: (cols,) or (cols, groups).
vector_like(::Nothing, name, main::Operand, place) = absent(Val(2))
function vector_like(array, name, main::Operand{N}, place) where {N}
    found, cols = columns(array, name, place), main.size[1]
    found.size == (cols,) && return Operand{2}(found.data, found.dtype, (cols, 1), (1, 0))
    N >= 2 && found.size == (cols, main.size[2]) && return found::Operand{2}
    refuse_size(name, found.size, main.size, (cols,), "x")
end

@noinline refuse_size(name, @nospecialize(size), @nospecialize(main), @nospecialize(wanted),
                      main_name) =
    refuse(ABI.ERROR_SHAPE, name, " has size ", size, ", but with ", main_name, " of ", main,
           " it must be ", wanted, name in VECTORS && length(main) > 1 ?
           ", or ($(main[1]), $(main[2])) for one per group" : "")
const VECTORS = ("weight", "bias", "dweight", "dbias")

per_group(array) = ndims_of(array) == 2
ndims_of(array) = array === nothing ? 0 : ndims(array)

struct Layout
    split::Int  # the dimensions 2:split are the groups
    rows::Int
    groups::Int
    cols::Int
end

# Dimensions first:last of an operand as one: its size and stride. Size -1: they are not one.
function joined(operand::Operand, first::Int, last::Int)
    count, step = 1, 0
    for i in first:last
        operand.size[i] == 1 && continue
        if count == 1
            count, step = operand.size[i], operand.strides[i]
        elseif operand.strides[i] == count * step
            count *= operand.size[i]
        else
            return -1, 0
        end
    end
    return count, step
end

fits(operand::Operand{N}, split::Int) where {N} =
    is_absent(operand) ||
    (joined(operand, 2, split)[1] >= 0 && joined(operand, split + 1, N)[1] >= 0)

function lay_out(main::Operand{N}, names, operands::Tuple{Vararg{Operand{N}}},
                 per_group::Bool) where {N}
    cols = main.size[1]
    if any(iszero, Base.tail(main.size))
        groups = per_group ? main.size[2] : 1
        groups == 0 &&
            refuse(ABI.ERROR_SHAPE, "x has size ", main.size, ", but there must be a group")
        return Layout(0, 0, groups, cols)
    end
    splits = per_group ? (2:2) : (1:N)
    for split in splits
        all(operand -> fits(operand, split), operands) && return Layout(
            split, joined(main, split + 1, N)[1], joined(main, 2, split)[1], cols)
    end
    blame(names, operands, splits)
end

# The first operand that does not go with those before it.
@noinline function blame(names, @nospecialize(operands), splits)
    for count in 1:length(operands)
        any(split -> all(operand -> fits(operand, split), operands[1:count]), splits) && continue
        refuse(ABI.ERROR_STRIDE, names[count], " has strides ", operands[count].strides,
               " for a size of ", operands[count].size,
               ", which are not those of rows x groups: pass a copy")
    end
end

function steps(layout::Layout, operand::Operand{N}) where {N}
    layout.rows == 0 && return 0, 0
    return joined(operand, layout.split + 1, N)[2], joined(operand, 2, layout.split)[2]
end

input(layout::Layout, operand::Operand) =
    is_absent(operand) ? ABI.Input() :
    ABI.Input(operand.data, steps(layout, operand)..., operand.dtype, 0)
output(layout::Layout, operand::Operand) =
    is_absent(operand) ? ABI.Tensor() :
    ABI.Tensor(operand.data, steps(layout, operand)..., operand.dtype, 0)

input(vector::Operand{2}) = ABI.Input(vector.data, 0, vector.strides[2], vector.dtype, 0)
output(vector::Operand{2}) = ABI.Tensor(vector.data, 0, vector.strides[2], vector.dtype, 0)
